// Trumpet's browser client: one module, no dependency. It keeps one connection to a
// worker, comes back by itself, and goes on from the last event id that it saw.

/**
 * A row's change, or a broadcast.
 * @typedef {object} TrumpetEvent
 * @property {string} [id] absent on a raw NOTIFY, which is not replayed
 * @property {string} topic
 * @property {'insert'|'update'|'delete'|'truncate'|'bulk'|'broadcast'} op
 * @property {string} at
 * @property {Object<string, any>} [key]
 * @property {Object<string, any>} [new] the row after the change
 * @property {Object<string, any>} [old] update: what changed; delete: the row
 * @property {any} [data] a broadcast's value
 * @property {string} [statement] bulk: which statement
 * @property {number} [rows] bulk: how many rows
 * @property {boolean} [more] further events of this transaction follow
 */
/** @typedef {{id: string, resumed: boolean, worker: string}} Ready */
/** @typedef {{id: string, reason: 'pruned'|'unknown'|'lost'|'invalid'}} Reset */
/**
 * live: nothing is missed. stale: the worker lost Postgres. offline: waiting to try
 * again. closed: by close(), or for a reason that coming back cannot mend.
 * @typedef {'connecting'|'live'|'stale'|'offline'|'closed'} State
 */
/** @typedef {{worker?: string, code?: string|number, message?: string, retryIn?: number}} StateInfo */
/**
 * @typedef {object} Options
 * @property {'websocket'|'sse'} [transport] default websocket
 * @property {string} [url] default /ws or /api/stream
 * @property {string[]} topics
 * @property {string} [since] go on after this id
 * @property {(event: TrumpetEvent) => void} [onEvent]
 * @property {(events: TrumpetEvent[]) => void} [onTransaction] once whole
 * @property {(ready: Ready) => void} [onReady] if not resumed: fetch your state now; may come again
 * @property {(reset: Reset) => void} [onReset] events are missing: fetch your state anew
 * @property {(state: State, info: StateInfo) => void} [onState]
 */
/**
 * @typedef {object} Connection
 * @property {() => void} close
 * @property {(topics: string|string[]) => void} subscribe
 * @property {(topics: string|string[]) => void} unsubscribe
 * @property {State} state
 * @property {string|undefined} lastId
 * @property {number} heard when the worker last said anything, ms since 1970
 */

const BASE = 500, CAP = 15_000; // backoff, ms
const HEALTHY = 10_000; // live for so long: the backoff begins anew
const OPENING = 15_000, QUIET = 40_000; // a worker pings every 15 s

/**
 * True if `id` does not come after `last`. The tag of a position differs only in
 * another history, and what that says is always news.
 * @param {string} id @param {string} [last]
 */
function seen(id, last) {
  const [a, b] = [id, last].map((s) => /^(\d+)\.(\d+)-(.+)$/.exec(s ?? ''));
  if (!a || !b) return id === last;
  const d = BigInt(a[1]) - BigInt(b[1]);
  return d ? d < 0 : a[3] === b[3] && +a[2] <= +b[2];
}

/**
 * Connects, and stays connected until close().
 * @param {Options} options
 * @returns {Connection}
 */
export function connect(options) {
  const { onEvent, onTransaction, onReady, onReset, onState } = options;
  const sse = options.transport === 'sse';
  const topics = new Set(options.topics);
  let lastId = options.since;
  /** @type {State} */ let state;
  /** @type {any} */ let socket; // there is one, or `timer` waits to open one
  let timer, worker, attempt = 0, heard = 0, opened, readyAt, stale;
  /** @type {TrumpetEvent[]} */ let open = []; // a transaction's events so far

  const set = (next, info) => {
    if (next === state && !info) return;
    state = next;
    onState?.(next, { worker, ...info });
  };

  const flush = () => {
    const whole = open;
    open = [];
    if (whole.length) onTransaction?.(whole);
  };

  const drop = () => {
    clearTimeout(timer);
    const old = socket;
    socket = readyAt = undefined;
    old?.close();
  };

  const end = (info) => {
    drop();
    open = [];
    globalThis.removeEventListener?.('online', dial);
    globalThis.document?.removeEventListener('visibilitychange', wake);
    if (state !== 'closed') set('closed', info);
  };

  const lost = (info) => {
    if (readyAt && Date.now() - readyAt >= HEALTHY) attempt = 0;
    drop();
    // Full jitter: thousands of boards must not come back in step.
    const retryIn = Math.random() * Math.min(CAP, BASE * 2 ** attempt++);
    timer = setTimeout(dial, retryIn);
    set('offline', { ...info, retryIn });
  };

  const watch = () => {
    clearTimeout(timer);
    const left = heard + (opened ? QUIET : OPENING) - Date.now();
    if (left > 0) timer = setTimeout(watch, left);
    else lost({ code: 'quiet', message: 'nothing heard' });
  };

  const wake = () => {
    if (document.visibilityState === 'visible') socket ? watch() : dial();
  };

  const take = (text) => {
    const m = JSON.parse(text);
    opened = true;
    heard = Date.now();
    switch (m.type) {
      case undefined:
        if (!m.id) {
          onEvent?.(m);
          onTransaction?.([m]);
        } else if (!seen(m.id, lastId)) {
          lastId = m.id;
          if (onTransaction) open.push(m);
          onEvent?.(m);
          if (!m.more) flush();
        }
        break;
      case 'ready':
        lastId = m.id; // may go back: what the log lost is gone, and its positions come again
        worker = m.worker;
        readyAt ||= heard;
        if (m.resumed) flush();
        else open = [];
        set(stale ? 'stale' : 'live');
        onReady?.(m);
        break;
      case 'reset':
        lastId = m.id;
        open = [];
        onReset?.(m);
        break;
      case 'ping':
        if (m.id && !seen(m.id, lastId)) lastId = m.id;
        break;
      case 'stale':
      case 'live':
        stale = m.type === 'stale';
        set(stale ? 'stale' : readyAt ? 'live' : 'connecting');
        break;
      case 'error':
        (m.retry === false ? end : lost)({ code: m.code, message: m.message });
    }
  };

  const dial = () => {
    drop();
    const url = new URL(options.url ?? (sse ? '/api/stream' : '/ws'), globalThis.location?.href);
    if (topics.size) url.searchParams.set('topics', [...topics].join());
    if (lastId) url.searchParams.set('since', lastId);
    if (!sse) url.protocol = url.protocol.replace('http', 'ws');
    opened = stale = false;
    heard = Date.now();
    const mine = (socket = sse ? new EventSource(url) : new WebSocket(url));
    const on = (type, f) => mine.addEventListener(type, (e) => mine === socket && f(e));
    on('open', () => {
      opened = true;
      heard = Date.now();
    });
    on('message', (e) => take(e.data));
    if (sse) {
      for (const type of ['ready', 'reset', 'stale', 'live', 'ping']) on(type, (e) => take(e.data));
      // Left alone, EventSource comes back without jitter, or never. The worker's own
      // `error` has data, the browser's has none.
      on('error', (e) => (e.data ? take(e.data) : lost()));
    } else {
      on('close', ({ code, reason: message }) =>
        (code >= 4500 && code < 5000 ? end : lost)({ code, message }));
    }
    set('connecting');
    watch();
  };

  const change = (type, list) => {
    list = [].concat(list);
    for (const t of list) topics[type === 'subscribe' ? 'add' : 'delete'](t);
    if (!socket) return;
    if (!sse && socket.readyState === 1) socket.send(JSON.stringify({ type, topics: list }));
    else dial();
  };

  globalThis.addEventListener?.('online', dial);
  globalThis.document?.addEventListener('visibilitychange', wake);
  dial();

  return {
    close: () => end({}),
    subscribe: (list) => change('subscribe', list),
    unsubscribe: (list) => change('unsubscribe', list),
    get state() { return state; },
    get lastId() { return lastId; },
    get heard() { return heard; },
  };
}
