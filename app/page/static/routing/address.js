// The selected token in the page's address: #turn=2&token=14&layer=3. Turns and tokens are counted from 1, layers as
// the decoder counts them.

const OURS = /^#turn=\d+&token=\d+&layer=\d+$/;
const REST_MS = 300; // between two changes: browsers refuse a hundred of them in ten seconds

let timer = null;
let waiting = null; // the hash that is to be there next
let last = ""; // the hash as it was left

/** {turn, token, layer}: numbers; null where the address says nothing of it. */
export function read() {
  settle();
  if (!OURS.test(location.hash)) return null;
  const [turn, token, layer] = location.hash.match(/\d+/g).map(Number);
  return { turn, token, layer };
}

/** Put them there, soon; null takes them away. What others wrote there stays. */
export function write(place) {
  const hash = place ? `#turn=${place.turn}&token=${place.token}&layer=${place.layer}` : "";
  if (timer === null) last = location.hash;
  waiting = hash;
  if (timer === null) rest();
}

function rest() {
  settle();
  timer = setTimeout(() => {
    timer = null;
    if (waiting !== null) rest();
  }, REST_MS);
}

/** Write what waits, unless somebody else wrote there meanwhile. */
function settle() {
  const hash = waiting;
  waiting = null;
  if (hash === null || hash === location.hash || location.hash !== last) return;
  if (location.hash && !OURS.test(location.hash)) return;
  try {
    history.replaceState(history.state, "", hash || location.pathname + location.search);
  } catch {
    return; // refused: the next selection tries again
  }
  last = hash;
}
