// Trumpet's browser client: one module, no dependency. It keeps one connection to a
// worker, comes back by itself, and goes on from the last event id that it saw.

/**
 * A row's change, a broadcast, or a live query's result.
 * @typedef {object} TrumpetEvent
 * @property {string} [id] absent on what is not replayed: a raw NOTIFY, and a result that was there before
 * @property {string} topic
 * @property {'insert'|'update'|'delete'|'enter'|'leave'|'truncate'|'bulk'|'broadcast'|'result'} op
 * @property {string} at
 * @property {Object<string, any>} [key]
 * @property {Object<string, any>} [new] the row after the change
 * @property {Object<string, any>} [old] update: what changed; delete, leave: the row
 * @property {any} [data] a broadcast's value, or a result
 * @property {number} [as_of] result: the log's position that it is true of
 * @property {boolean} [stale] result: it could not be brought up to date, `error` says why
 * @property {string} [error]
 * @property {string} [statement] bulk: which statement
 * @property {number} [rows] bulk: how many rows
 * @property {boolean} [more] further events of this transaction follow
 */
/** @typedef {{id: string, resumed: boolean, worker: string}} Ready */
/** @typedef {{id?: string, reason: 'pruned'|'unknown'|'lost'|'invalid'|'schema'}} Reset */
/** @typedef {{topics: string[], id: string}} Subscribed all subscriptions, and from where on */
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
 * @property {string[]} topics each with its filter, if any: `jobs?status=eq.open&priority=gt.1`
 * @property {boolean} [snapshot] the rows first, and again whenever that is needed
 * @property {string} [since] go on after this id
 * @property {(event: TrumpetEvent) => void} [onEvent]
 * @property {(events: TrumpetEvent[]) => void} [onTransaction] once whole
 * @property {(topic: string, rows: object[]) => void} [onSnapshot] what was there before the events that follow
 * @property {(topic: string, rows: object[]) => void} [onRows] the rows of a topic with a snapshot, after each transaction
 * @property {(ready: Ready) => void} [onReady] if not resumed: fetch your state now; may come again
 * @property {(reset: Reset) => void} [onReset] events are missing: fetch your state anew; with snapshots that is done
 * @property {(state: State, info: StateInfo) => void} [onState]
 */
/**
 * @typedef {object} Connection
 * @property {() => void} close
 * @property {(topics: string|string[], options?: {snapshot?: boolean}) => Promise<Subscribed|void>} subscribe
 *   rejected if the worker refuses it; it need not be awaited
 * @property {(topics: string|string[]) => Promise<Subscribed|void>} unsubscribe
 * @property {State} state
 * @property {string|undefined} lastId
 * @property {number} heard when the worker last said anything, ms since 1970
 */

const BASE = 500, CAP = 15_000; // backoff, ms
const HEALTHY = 10_000; // live for so long: the backoff begins anew
const OPENING = 15_000, QUIET = 40_000; // a worker pings every 15 s
const AGAIN = 1_000; // between two snapshots that replace rows

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

/** @param {string} subscription */
const topicOf = (subscription) => subscription.split('?', 1)[0];

/**
 * A topic's rows, kept up by its events. Which columns are the key, the first event tells.
 * @param {object[]} list
 */
function table(list) {
  let map = new Map(list.entries()), columns = [];
  const keyOf = (row) => JSON.stringify(columns.map((c) => row[c]));
  return {
    get list() { return [...map.values()]; },
    /** @param {TrumpetEvent} e */
    apply(e) {
      if (e.op === 'truncate') map.clear();
      const row = e.new ?? e.old;
      if (!row) return;
      const names = Object.keys(e.key ?? row);
      if (`${names}` !== `${columns}`) {
        columns = names;
        map = new Map([...map.values()].map((r) => [keyOf(r), r]));
      }
      const before = e.old && keyOf({ ...e.new, ...e.old });
      if (before && !(e.new && keyOf(e.new) === before)) map.delete(before);
      if (e.new) map.set(keyOf(e.new), e.new);
    },
  };
}

/**
 * Connects, and stays connected until close().
 * @param {Options} options
 * @returns {Connection}
 */
export function connect(options) {
  const { onEvent, onTransaction, onSnapshot, onRows, onReady, onReset, onState } = options;
  const sse = options.transport === 'sse';
  const topics = new Set(options.topics);
  let lastId = options.since, snapshot = options.snapshot;
  /** @type {State} */ let state;
  /** @type {any} */ let socket; // there is one, or `timer` waits to open one
  let timer, worker, attempt = 0, heard = 0, opened, readyAt, stale;
  /** @type {TrumpetEvent[]} */ let open = []; // a transaction's events so far
  let refs = 0, pages = [], again, asked = 0;
  /** @type {Map<number, any>} */ const waiting = new Map(); // by ref: what was asked for and not answered
  /** @type {Map<string, ReturnType<typeof table>>} */ const tables = new Map();
  const touched = new Set(); // of `tables`, by the open transaction
  const owed = new Map(); // topics whose snapshot was asked for, by which ref: without it there is no going on

  const set = (next, info) => {
    if (next === state && !info) return;
    state = next;
    onState?.(next, { worker, ...info });
  };

  const flush = () => {
    const whole = open, rows = [...touched];
    open = [];
    touched.clear();
    if (whole.length) onTransaction?.(whole);
    for (const t of rows) if (tables.has(t)) onRows(t, tables.get(t).list);
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
    clearTimeout(again);
    globalThis.removeEventListener?.('online', dial);
    globalThis.document?.removeEventListener('visibilitychange', wake);
    if (state !== 'closed') set('closed', info);
    for (const ref of [...waiting.keys()]) refuse(ref, info.message ?? 'closed');
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

  const settle = (ref, answer) => {
    const asker = waiting.get(ref);
    waiting.delete(ref);
    for (const [t, by] of owed) if (by === ref) owed.delete(t);
    asker?.resolve?.(answer);
  };

  const refuse = (ref, message) => {
    const asker = waiting.get(ref);
    waiting.delete(ref);
    if (asker?.resolve) {
      for (const t of asker.added) topics.delete(t);
      for (const [t, by] of owed) if (by === ref) owed.delete(t);
      asker.reject(new Error(message));
    } else if (asker) lost({ code: 'refused', message }); // a snapshot of our own: begin anew, and hear why not
  };

  // A page cannot read why a connection was not even opened. What is wrong with a filter stays wrong.
  const inquire = async (url) => {
    const abort = new AbortController();
    try {
      const answer = await fetch(url.replace(/^ws/, 'http'), { signal: abort.signal, cache: 'no-store' });
      const message = answer.status === 400 && (await answer.json()).detail;
      if (!message || state === 'closed' || url !== address().href) return;
      const news = [...waiting].filter(([, asker]) => asker.added?.length);
      if (!news.length) return end({ code: 400, message });
      for (const [ref] of news) refuse(ref, message);
      dial();
    } catch {
      // The next attempt tells more.
    } finally {
      abort.abort();
    }
  };

  /** Asks for the rows of a topic again, soon. */
  const refresh = (topic) => {
    if (owed.has(topic)) return;
    owed.set(topic, 0);
    again ??= setTimeout(ask, Math.max(0, asked + AGAIN - Date.now()));
  };

  const ask = () => {
    again = undefined;
    asked = Date.now();
    if (!socket) return; // it will begin anew
    if (sse || socket.readyState !== 1) return dial();
    const ref = ++refs, news = [...owed].filter(([, by]) => !by).map(([t]) => t);
    for (const t of news) owed.set(t, ref);
    waiting.set(ref, { socket });
    const list = [...topics].filter((t) => news.includes(topicOf(t)));
    socket.send(JSON.stringify({ type: 'subscribe', ref, topics: list, snapshot: true }));
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
          if (tables.has(m.topic)) {
            if (m.op === 'bulk') refresh(m.topic);
            else if (onRows) {
              tables.get(m.topic).apply(m);
              touched.add(m.topic);
            }
          }
          onEvent?.(m);
          if (!m.more) flush();
        }
        break;
      case 'snapshot':
        pages = m.page === 1 ? m.rows : pages.concat(m.rows);
        if (m.more) break;
        owed.delete(m.topic);
        tables.set(m.topic, table(pages));
        onSnapshot?.(m.topic, pages);
        onRows?.(m.topic, pages);
        pages = [];
        break;
      case 'ready':
        lastId = m.id; // may go back: what the log lost is gone, and its positions come again
        worker = m.worker;
        for (const [ref, asker] of readyAt ? [] : [...waiting]) if (asker.socket !== socket) settle(ref);
        readyAt ||= heard;
        if (m.resumed) flush();
        else open = [];
        set(stale ? 'stale' : 'live');
        onReady?.(m);
        break;
      case 'reset':
        lastId = m.id; // none if snapshots follow
        open = [];
        onReset?.(m);
        if (m.id && snapshot) for (const t of topics) refresh(topicOf(t));
        break;
      case 'refused':
        refuse(m.ref, m.message);
        break;
      case 'subscribed':
        settle(m.ref, m);
      // falls through: all up to its id was given
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

  const address = () => {
    const url = new URL(options.url ?? (sse ? '/api/stream' : '/ws'), globalThis.location?.href);
    const add = (name, value) => value && url.searchParams.append(name, value);
    const list = [...topics];
    add('topics', list.filter((t) => !t.includes('?')).join());
    for (const t of list) if (t.includes('?')) add('topics', t);
    if (snapshot) add('snapshot', '1');
    add('since', lastId);
    return url;
  };

  const dial = () => {
    drop();
    // What is owed comes if there is nothing to go on from.
    if (owed.size) lastId = undefined;
    owed.clear();
    clearTimeout(again);
    again = undefined;
    for (const [ref, asker] of waiting) if (!asker.resolve) waiting.delete(ref);
    const url = address(), plain = url.href;
    const filtered = [...topics].some((t) => t.includes('?'));
    if (!sse) url.protocol = url.protocol.replace('http', 'ws');
    opened = stale = false;
    heard = Date.now();
    const mine = (socket = sse ? new EventSource(url) : new WebSocket(url));
    const on = (type, f) => mine.addEventListener(type, (e) => mine === socket && f(e));
    const failed = (info) => {
      const refused = filtered && !opened;
      lost(info);
      if (refused) inquire(plain);
    };
    on('open', () => {
      opened = true;
      heard = Date.now();
    });
    on('message', (e) => take(e.data));
    if (sse) {
      for (const type of ['ready', 'reset', 'snapshot', 'stale', 'live', 'ping']) on(type, (e) => take(e.data));
      // Left alone, EventSource comes back without jitter, or never. The worker's own
      // `error` has data, the browser's has none.
      on('error', (e) => (e.data ? take(e.data) : failed()));
    } else {
      on('close', ({ code, reason: message }) =>
        (code >= 4500 && code < 5000 ? end : failed)({ code, message }));
    }
    set('connecting');
    watch();
  };

  const change = (type, list, rows) => {
    list = [].concat(list);
    const adds = type === 'subscribe', ref = ++refs;
    const added = adds ? list.filter((t) => !topics.has(t)) : [];
    for (const t of list) topics[adds ? 'add' : 'delete'](t);
    snapshot ||= rows;
    if (rows) for (const t of list) owed.set(topicOf(t), ref);
    const frame = socket && !sse && socket.readyState === 1;
    const answer = new Promise((resolve, reject) => {
      if (state === 'closed') reject(new Error('closed'));
      else waiting.set(ref, { resolve, reject, added, socket: frame ? socket : undefined });
    });
    answer.catch(() => {}); // who does not wait for it need not handle it
    if (frame) socket.send(JSON.stringify({ type, ref, topics: list, ...(rows && { snapshot: true }) }));
    else if (socket) dial();
    if (!adds) {
      for (const t of list.map(topicOf)) {
        if (!tables.has(t)) continue;
        if ([...topics].some((s) => topicOf(s) === t)) refresh(t); // fewer rows
        else tables.delete(t);
      }
    }
    return answer;
  };

  globalThis.addEventListener?.('online', dial);
  globalThis.document?.addEventListener('visibilitychange', wake);
  dial();

  return {
    close: () => end({}),
    subscribe: (list, { snapshot: rows = options.snapshot } = {}) => change('subscribe', list, rows),
    unsubscribe: (list) => change('unsubscribe', list),
    get state() { return state; },
    get lastId() { return lastId; },
    get heard() { return heard; },
  };
}
