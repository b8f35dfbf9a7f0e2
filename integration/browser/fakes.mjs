// A fake WebSocket, EventSource and clock for the browser client's tests.

import { afterEach, beforeEach, mock } from 'node:test';
import { connect } from '../../server/web/client.js';

/** Every socket that the client opened, oldest first. */
export let sockets = [];
export const forget = () => { sockets = []; };
export const open = () => sockets.filter((s) => !s.closed);
export const last = () => sockets.at(-1);

class Socket extends EventTarget {
  constructor(url) {
    super();
    this.url = new URL(url);
    this.readyState = 0;
    this.sent = [];
    sockets.push(this);
  }
  get since() { return this.url.searchParams.get('since'); }
  get topics() { return this.url.searchParams.get('topics'); }
  get allTopics() { return this.url.searchParams.getAll('topics'); }
  get snapshot() { return this.url.searchParams.get('snapshot'); }
  close() {
    this.closed = true;
    this.readyState = 3;
  }
  emit(type, properties) { this.dispatchEvent(Object.assign(new Event(type), properties)); }
  accept() {
    this.readyState = 1;
    this.emit('open');
  }
}
class FakeWebSocket extends Socket {
  say(message) { this.emit('message', { data: JSON.stringify(message) }); }
  send(text) { this.sent.push(JSON.parse(text)); }
  drop(code = 1006, reason = '') {
    this.close();
    this.emit('close', { code, reason });
  }
}
class FakeEventSource extends Socket {
  say(message) { this.emit(message.type ?? 'message', { data: JSON.stringify(message) }); }
  drop() {
    this.readyState = 0; // a browser would come back by itself
    this.emit('error');
  }
}

export const page = new EventTarget(); // window and document at once
const random = Math.random;
export let connection;

beforeEach(() => {
  sockets = [];
  mock.timers.enable({ apis: ['setTimeout', 'Date'], now: 1_000_000 });
  Object.assign(globalThis, {
    WebSocket: FakeWebSocket,
    EventSource: FakeEventSource,
    location: { href: 'https://board.example/somewhere?x=1' },
    document: page,
    addEventListener: page.addEventListener.bind(page),
    removeEventListener: page.removeEventListener.bind(page),
  });
  page.visibilityState = 'visible';
  Math.random = () => 0.5;
});
afterEach(() => {
  connection?.close();
  connection = undefined;
  Math.random = random;
  mock.timers.reset();
});

/** Connects and writes down whatever the client reports. */
export function start(options = {}) {
  const seen = { events: [], transactions: [], ready: [], resets: [], states: [], infos: [], snapshots: [], rows: [] };
  connection = connect({
    topics: ['jobs', 'dispatch'],
    onEvent: (e) => seen.events.push(e.id ?? e.data),
    onTransaction: (t) => seen.transactions.push(t.map((e) => e.id ?? e.data)),
    onSnapshot: (topic, rows) => seen.snapshots.push([topic, rows.map((r) => r.id)]),
    onRows: (topic, rows) => seen.rows.push(rows.map((r) => `${r.id}:${r.status}`).join(' ')),
    onReady: (r) => seen.ready.push(r),
    onReset: (r) => seen.resets.push(r.reason),
    onState: (s, info) => {
      seen.states.push(s);
      seen.infos.push(info);
    },
    ...options,
  });
  return seen;
}
export const id = (position, ordinal = 0, tag = `0000${position}`) => `${position}.${ordinal}-${tag}`;
export const event = (at, more) => ({ id: at, topic: 'jobs', op: 'update', at: '', key: { id: 1 }, new: {}, ...(more && { more }) });
export const ready = (at, resumed = false) => ({ type: 'ready', id: at, resumed, worker: 'w1' });
export const live = (at = id(10)) => {
  last().accept();
  last().say(ready(at));
};
export const pass = (ms) => mock.timers.tick(ms);
