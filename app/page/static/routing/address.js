// The selected token in the page's address: #turn=2&token=14&layer=3. Turns and tokens are counted from 1, layers as
// the decoder counts them.

const OURS = /^#turn=\d+&token=\d+&layer=\d+$/;

/** {turn, token, layer}: numbers; null where the address says nothing of it. */
export function read() {
  if (!OURS.test(location.hash)) return null;
  const [turn, token, layer] = location.hash.match(/\d+/g).map(Number);
  return { turn, token, layer };
}

/** Put them there; null takes them away. What others wrote there stays. */
export function write(place) {
  if (location.hash && !OURS.test(location.hash)) return;
  const hash = place ? `#turn=${place.turn}&token=${place.token}&layer=${place.layer}` : "";
  if (hash !== location.hash) history.replaceState(history.state, "", hash || location.pathname + location.search);
}
