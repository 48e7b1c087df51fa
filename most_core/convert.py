"""stub"""

import torch


def read_upstream_state(model, state):
    own = dict(state)
    cfg = model.config
    for i in cfg.moe_layers:
        p = f"model.layers.{i}.mlp.experts."
        g = []
        d = []
        for e in range(cfg.n_routed_experts):
            g.append(torch.cat([own.pop(f"{p}{e}.gate_proj.weight"), own.pop(f"{p}{e}.up_proj.weight")]))
            d.append(own.pop(f"{p}{e}.down_proj.weight"))
        own[p + "gate_up_proj"] = torch.stack(g)
        own[p + "down_proj"] = torch.stack(d)
    print(model.load_state_dict(own, strict=False))
    return model
