// The browser client against a fake WebSocket, EventSource and clock:
//   node --test client.test.mjs

import assert from 'node:assert/strict';
import { afterEach, beforeEach, mock, test } from 'node:test';
import { connect } from '../../server/web/client.js';

/** Every socket that the client opened, oldest first. */
let sockets = [];
const open = () => sockets.filter((s) => !s.closed);
const last = () => sockets.at(-1);

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

const page = new EventTarget(); // window and document at once
const random = Math.random;
let connection;

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
function start(options = {}) {
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
const id = (position, ordinal = 0, tag = `0000${position}`) => `${position}.${ordinal}-${tag}`;
const event = (at, more) => ({ id: at, topic: 'jobs', op: 'update', at: '', key: { id: 1 }, new: {}, ...(more && { more }) });
const ready = (at, resumed = false) => ({ type: 'ready', id: at, resumed, worker: 'w1' });
const live = (at = id(10)) => {
  last().accept();
  last().say(ready(at));
};
const pass = (ms) => mock.timers.tick(ms);

for (const transport of ['websocket', 'sse']) {
  test(`${transport}: connects, becomes live, remembers the last id`, () => {
    const seen = start({ transport });
    assert.equal(last().url.href.split('?')[0], transport === 'sse' ? 'https://board.example/api/stream' : 'wss://board.example/ws');
    assert.equal(last().topics, 'jobs,dispatch');
    assert.equal(last().since, null);
    assert.equal(connection.state, 'connecting');
    live();
    assert.equal(connection.state, 'live');
    assert.equal(connection.lastId, id(10));
    last().say(event(id(11)));
    last().say({ type: 'ping', id: id(14), at: '' });
    assert.equal(connection.lastId, id(14));
    assert.deepEqual(seen.events, [id(11)]);
    assert.deepEqual(seen.states, ['connecting', 'live']);
    assert.equal(seen.infos[1].worker, 'w1');
  });

  test(`${transport}: comes back with its last id and goes on`, () => {
    const seen = start({ transport });
    live();
    last().say(event(id(11)));
    last().drop();
    assert.equal(connection.state, 'offline');
    assert.equal(open().length, 0, 'the old socket is closed, so it cannot come back by itself');
    pass(250);
    assert.equal(sockets.length, 2);
    assert.equal(last().since, id(11));
    last().accept();
    last().say(event(id(12)));
    last().say(ready(id(12), true));
    assert.deepEqual(seen.events, [id(11), id(12)]);
    assert.deepEqual(seen.states, ['connecting', 'live', 'offline', 'connecting', 'live']);
    assert.equal(seen.ready[1].resumed, true);
  });

  test(`${transport}: an error that a retry cannot mend closes for good`, () => {
    const seen = start({ transport });
    last().accept();
    last().say({ type: 'error', code: 'unauthorized', message: 'no', retry: false });
    assert.equal(connection.state, 'closed');
    assert.deepEqual(seen.infos.at(-1), { worker: undefined, code: 'unauthorized', message: 'no' });
    pass(120_000);
    page.dispatchEvent(new Event('online'));
    page.dispatchEvent(new Event('visibilitychange'));
    connection.subscribe('more');
    assert.equal(sockets.length, 1);
  });

  test(`${transport}: an error that a retry mends comes back`, () => {
    start({ transport });
    live();
    last().say({ type: 'error', code: 'draining', message: '', retry: true });
    assert.equal(connection.state, 'offline');
    pass(250);
    assert.equal(last().since, id(10));
  });

  test(`${transport}: silence for 40 s reconnects, a ping counts as a word`, () => {
    start({ transport });
    live();
    pass(15_000);
    last().say({ type: 'ping', id: id(10), at: '' });
    pass(39_999);
    assert.equal(connection.state, 'live');
    pass(1);
    assert.equal(connection.state, 'offline');
    pass(250);
    assert.equal(sockets.length, 2);
  });

  test(`${transport}: close() is final`, () => {
    const seen = start({ transport });
    live();
    const socket = last();
    connection.close();
    connection.close();
    socket.say(event(id(11)));
    pass(120_000);
    assert.equal(sockets.length, 1);
    assert.deepEqual(seen.events, []);
    assert.deepEqual(seen.states, ['connecting', 'live', 'closed']);
  });
}

test('backoff: full jitter between nothing and a bound that doubles up to 15 s', () => {
  for (const [share, bounds] of [[0, Array(7).fill(0)], [0.999, [500, 1000, 2000, 4000, 8000, 15000, 15000]]]) {
    Math.random = () => share;
    const seen = start();
    for (const bound of bounds) {
      last().drop();
      assert.equal(seen.infos.at(-1).retryIn, share * bound);
      pass(Math.ceil(share * bound));
      assert.equal(connection.state, 'connecting');
    }
    connection.close();
  }
});

test('backoff: begins anew after a healthy spell, not after a short one', () => {
  const seen = start();
  for (let i = 0; i < 4; i++) {
    last().drop();
    pass(15_000);
  }
  live();
  pass(9_000);
  last().drop();
  assert.equal(seen.infos.at(-1).retryIn, 4000);
  pass(15_000);
  live();
  pass(10_000);
  last().drop();
  assert.equal(seen.infos.at(-1).retryIn, 250);
});

test('a handshake that never ends is given up after 15 s', () => {
  start();
  pass(14_999);
  assert.equal(connection.state, 'connecting');
  pass(1);
  assert.equal(connection.state, 'offline');
});

test('online and a visible tab try at once', () => {
  Math.random = () => 1;
  start();
  for (let i = 0; i < 6; i++) {
    last().drop();
    pass(15_000);
  }
  last().drop();
  page.dispatchEvent(new Event('online'));
  assert.equal(sockets.length, 8);
  last().drop();
  page.visibilityState = 'hidden';
  page.dispatchEvent(new Event('visibilitychange'));
  assert.equal(sockets.length, 8, 'a hidden tab waits');
  page.visibilityState = 'visible';
  page.dispatchEvent(new Event('visibilitychange'));
  assert.equal(sockets.length, 9);
  assert.equal(open().length, 1);
  live();
  page.dispatchEvent(new Event('visibilitychange'));
  assert.equal(sockets.length, 9, 'a live connection stays');
});

test('a tab that slept notices at once that nothing was heard', () => {
  start();
  live();
  mock.timers.setTime(Date.now() + 3_600_000); // timers stood still while it slept
  page.dispatchEvent(new Event('visibilitychange'));
  assert.notEqual(connection.state, 'live');
});

test('close codes: 4000–4499 and losses come back, 4500–4999 do not', () => {
  for (const [code, back] of [[1000, true], [1006, true], [1011, true], [4001, true], [4008, true], [4499, true], [4500, false], [4501, false], [4999, false]]) {
    sockets = [];
    const seen = start();
    live();
    last().drop(code, 'why');
    assert.equal(connection.state, back ? 'offline' : 'closed', `code ${code}`);
    assert.equal(seen.infos.at(-1).code, code);
    assert.equal(seen.infos.at(-1).message, 'why');
    pass(60_000);
    assert.equal(sockets.length > 1, back, `code ${code}`);
    connection.close();
  }
});

test('no event twice, none left out', () => {
  const seen = start();
  live(id(10, 3));
  for (const at of [id(10, 3), id(9, 7), id(10, 4), id(10, 4), id(11), id(10, 5), id(11, 1), id(100), id(99, 9), id(9007199254740993)]) {
    last().say(event(at));
  }
  assert.deepEqual(seen.events, [id(10, 4), id(11), id(11, 1), id(100), id(9007199254740993)]);
});

test('a position with another tag is another history, and news', () => {
  const seen = start();
  live();
  last().say(event(id(11, 0, 'aaaaaaaa')));
  last().say(event(id(11, 0, 'bbbbbbbb')));
  assert.deepEqual(seen.events, [id(11, 0, 'aaaaaaaa'), id(11, 0, 'bbbbbbbb')]);
});

test('events without an id are given on, and leave the place alone', () => {
  const seen = start();
  live();
  last().say(event(id(11), true));
  last().say({ topic: 'dispatch', op: 'broadcast', at: '', data: 'raw' });
  last().say({ topic: 'dispatch', op: 'broadcast', at: '', data: 'raw' });
  last().say(event(id(12)));
  assert.deepEqual(seen.events, [id(11), 'raw', 'raw', id(12)]);
  assert.deepEqual(seen.transactions, [['raw'], ['raw'], [id(11), id(12)]]);
  assert.equal(connection.lastId, id(12));
});

test('a transaction is given whole, also across a lost connection', () => {
  const seen = start();
  live();
  last().say(event(id(11), true));
  last().say(event(id(12), true));
  last().drop();
  pass(250);
  last().accept();
  assert.equal(last().since, id(12));
  last().say(event(id(12), true)); // a worker would not; it would not matter
  last().say(event(id(13)));
  last().say(ready(id(13), true));
  last().say(event(id(14)));
  assert.deepEqual(seen.transactions, [[id(11), id(12), id(13)], [id(14)]]);
});

test('ready after a resume ends a transaction whose rest this client does not see', () => {
  const seen = start();
  live();
  last().say(event(id(11), true));
  last().drop();
  pass(250);
  connection.unsubscribe('dispatch');
  last().accept();
  last().say(ready(id(13), true));
  assert.deepEqual(seen.transactions, [[id(11)]]);
});

test('reset: half a transaction is void, and live begins at its id', () => {
  const seen = start();
  live(id(50));
  last().say(event(id(51), true));
  last().drop();
  pass(250);
  last().accept();
  last().say({ type: 'reset', id: id(7), reason: 'unknown' });
  last().say(ready(id(7), false));
  last().say(event(id(8)));
  assert.deepEqual(seen.resets, ['unknown']);
  assert.deepEqual(seen.events, [id(51), id(8)]);
  assert.deepEqual(seen.transactions, [[id(8)]]);
  last().say({ type: 'reset', id: id(3), reason: 'lost' });
  last().say(event(id(4)));
  assert.equal(connection.lastId, id(4));
  assert.deepEqual(seen.events, [id(51), id(8), id(4)]);
});

for (const transport of ['websocket', 'sse']) {
  test(`${transport}: the log lost its tail: ready comes again and sets the last id back`, () => {
    const seen = start({ transport });
    live(id(10));
    last().say(event(id(11)));
    last().say({ type: 'ping', id: id(20), at: '' });
    last().say(ready(id(12, 0, 'aaaaaaaa'), true)); // not one of ours was lost
    assert.equal(connection.lastId, id(12, 0, 'aaaaaaaa'));
    assert.equal(connection.state, 'live');
    last().say(event(id(13, 0, 'bbbbbbbb'))); // lower than the ping, and news
    last().say(event(id(14, 0, 'bbbbbbbb'), true));
    last().say({ type: 'reset', id: id(13, 0, 'bbbbbbbb'), reason: 'lost' });
    last().say(ready(id(13, 0, 'bbbbbbbb'), false));
    last().say(event(id(14, 0, 'cccccccc')));
    assert.deepEqual(seen.events, [id(11), id(13, 0, 'bbbbbbbb'), id(14, 0, 'bbbbbbbb'), id(14, 0, 'cccccccc')]);
    assert.deepEqual(seen.transactions, [[id(11)], [id(13, 0, 'bbbbbbbb')], [id(14, 0, 'cccccccc')]]);
    assert.deepEqual(seen.ready.map((r) => r.resumed), [false, true, false]);
    assert.deepEqual(seen.resets, ['lost']);
    last().drop();
    pass(250);
    assert.equal(last().since, id(14, 0, 'cccccccc'));
  });
}

test('backoff: a ready that comes again does not end a healthy spell', () => {
  const seen = start();
  for (let i = 0; i < 4; i++) {
    last().drop();
    pass(15_000);
  }
  live();
  pass(9_000);
  last().say(ready(id(9), true));
  pass(1_000);
  last().drop();
  assert.equal(seen.infos.at(-1).retryIn, 250);
});

test('stale and live follow the worker', () => {
  const seen = start();
  last().accept();
  last().say({ type: 'stale' });
  last().say(ready(id(10)));
  last().say({ type: 'live' });
  last().say({ type: 'stale' });
  last().drop();
  pass(250);
  live();
  assert.deepEqual(seen.states, ['connecting', 'stale', 'live', 'stale', 'offline', 'connecting', 'live']);
});

test('subscribe and unsubscribe: a frame on a WebSocket, the new topics when it comes back', () => {
  start();
  connection.subscribe('stats'); // not yet open: opened anew
  assert.equal(open().length, 1);
  assert.equal(last().topics, 'jobs,dispatch,stats');
  live();
  connection.subscribe(['customers']);
  connection.unsubscribe('jobs');
  const [first, second] = last().sent;
  assert.deepEqual(last().sent, [{ type: 'subscribe', ref: first.ref, topics: ['customers'] }, { type: 'unsubscribe', ref: second.ref, topics: ['jobs'] }]);
  assert.notEqual(first.ref, second.ref);
  last().say({ type: 'subscribed', ref: first.ref, topics: ['dispatch', 'stats', 'customers'], id: id(10) });
  last().drop();
  connection.subscribe('late');
  assert.equal(open().length, 0, 'while it waits it only remembers');
  pass(250);
  assert.equal(last().topics, 'dispatch,stats,customers,late');
});

test('subscribe on SSE opens anew and goes on', () => {
  start({ transport: 'sse' });
  live();
  connection.subscribe('stats');
  assert.equal(open().length, 1);
  assert.equal(last().topics, 'jobs,dispatch,stats');
  assert.equal(last().since, id(10));
});

test('since and url are taken as given', () => {
  start({ since: id(5), url: '/ws/dispatch?token=a' });
  assert.equal(last().url.href, `wss://board.example/ws/dispatch?token=a&topics=jobs%2Cdispatch&since=${id(5)}`);
  connection.close();
  start({ url: 'http://other.example/ws' });
  assert.equal(last().url.protocol, 'ws:');
});

test('what an abandoned socket still says is not heard', () => {
  const seen = start();
  live();
  const old = last();
  old.drop();
  pass(250);
  old.say(event(id(11)));
  old.emit('close', { code: 4500, reason: '' });
  assert.deepEqual(seen.events, []);
  assert.equal(connection.state, 'connecting');
});

const job = (n, status) => ({ id: n, status });
const shot = (rows, n = 1, more = false, topic = 'jobs') => ({ type: 'snapshot', topic, page: n, rows, ...(more && { more }) });
const changed = (at, op, n, { to, from, more } = {}) => ({
  id: id(at), topic: 'jobs', op, at: '', key: { id: n }, ...(to && { new: job(n, to) }), ...(from && { old: from }), ...(more && { more }),
});
const OPEN = 'jobs?status=eq.open';

test('filters: every filtered topic has a parameter of its own, encoded', () => {
  start({ topics: ['a', 'jobs?title=eq.x%26y&n=gt.1', 'b', OPEN] });
  assert.deepEqual(last().allTopics, ['a,b', 'jobs?title=eq.x%26y&n=gt.1', OPEN]);
  assert.equal(last().snapshot, null);
});

for (const transport of ['websocket', 'sse']) {
  test(`${transport}: rows are kept up from a snapshot and what follows`, () => {
    const seen = start({ transport, topics: [OPEN], snapshot: true });
    last().accept();
    assert.equal(last().snapshot, '1');
    last().say(shot([job(1, 'open')], 1, true));
    assert.deepEqual(seen.rows, [], 'a part is none');
    last().say(shot([job(2, 'open')], 2));
    assert.deepEqual(seen.snapshots, [['jobs', [1, 2]]]);
    last().say(changed(8, 'delete', 2, { from: job(2, 'open') })); // between the snapshot and ready
    last().say(ready(id(8)));
    last().say(changed(11, 'insert', 3, { to: 'open' }));
    last().say(changed(12, 'leave', 1, { from: job(1, 'open'), more: true }));
    last().say(changed(13, 'enter', 2, { to: 'open' }));
    last().say({ ...changed(14, 'update', 9, { to: 'open', from: { id: 2 } }) }); // its key itself
    last().say({ id: id(15), topic: 'jobs', op: 'truncate', at: '' });
    last().say(changed(16, 'insert', 4, { to: 'open' }));
    assert.deepEqual(seen.rows, ['1:open 2:open', '1:open', '1:open 3:open', '3:open 2:open', '3:open 9:open', '', '4:open']);
    last().say(changed(16, 'delete', 4, { from: job(4, 'open') })); // seen already
    assert.equal(seen.rows.length, 7);
  });

  test(`${transport}: who has only a part of its snapshot begins anew`, () => {
    const seen = start({ transport, topics: ['jobs'], snapshot: true });
    last().accept();
    last().say(shot([job(1, 'open')], 1, true));
    last().drop();
    pass(15_000);
    assert.equal(last().since, null);
    last().accept();
    last().say(shot([job(2, 'open')]));
    last().say(ready(id(10)));
    assert.deepEqual(seen.snapshots, [['jobs', [2]]]);
    last().drop(); // whole now: it goes on
    pass(15_000);
    assert.equal(last().since, id(10));
    last().accept();
    last().say({ type: 'reset', reason: 'pruned' }); // and snapshots follow
    last().say(shot([job(3, 'open')], 1, true));
    last().drop();
    pass(15_000);
    assert.equal(last().since, null);
  });

  test(`${transport}: bulk and a reset while connected bring the rows again, once a second at most`, () => {
    const seen = start({ transport, topics: ['jobs', 'news'], snapshot: true });
    const bulk = (at) => ({ id: id(at), topic: 'jobs', op: 'bulk', at: '', statement: 'update', rows: 1000 });
    live();
    last().say(shot([job(1, 'open')]));
    last().say(bulk(11));
    last().say(bulk(12));
    pass(0);
    const answer = (rows) => {
      if (transport === 'sse') {
        assert.equal(last().since, null, 'opened anew, with nothing to go on from');
        last().accept();
        last().say(shot(rows));
        last().say(ready(id(13)));
        return;
      }
      const { ref, ...frame } = last().sent.at(-1);
      assert.deepEqual(frame, { type: 'subscribe', topics: frame.topics, snapshot: true });
      last().say(shot(rows));
      last().say({ type: 'subscribed', ref, topics: ['jobs', 'news'], id: id(13) });
    };
    answer([job(2, 'open')]);
    assert.deepEqual(seen.rows, ['1:open', '2:open']);
    if (transport === 'websocket') assert.deepEqual(last().sent.map((f) => f.topics), [['jobs']]);
    const before = transport === 'sse' ? sockets.length : last().sent.length;
    const asked = () => (transport === 'sse' ? sockets.length : last().sent.length) - before;
    last().say({ type: 'reset', id: id(12), reason: 'lost' });
    last().say(ready(id(12)));
    pass(999);
    assert.equal(asked(), 0);
    pass(1);
    assert.equal(asked(), 1);
    answer([job(3, 'open')]);
    assert.equal(seen.rows.at(-1), '3:open');
    assert.equal(connection.state, 'live');
    last().drop();
    pass(250);
    assert.equal(last().since, transport === 'sse' ? id(13) : id(12), 'nothing is owed any more');
  });
}

test('a drop while rows are owed begins anew', () => {
  start({ topics: ['jobs'], snapshot: true });
  live();
  last().say(shot([job(1, 'open')]));
  last().say({ id: id(11), topic: 'jobs', op: 'bulk', at: '', statement: 'update', rows: 1000 });
  last().drop();
  pass(250);
  assert.equal(last().since, null);
  assert.equal(last().snapshot, '1');
});

test('subscribe: settled by what the worker answers', async () => {
  const seen = start({ topics: ['jobs'] });
  live();
  const taken = connection.subscribe(OPEN, { snapshot: true });
  const refused = connection.subscribe(['jobs?state=eq.open', 'jobs']);
  const [first, second] = last().sent;
  assert.deepEqual(first, { type: 'subscribe', ref: first.ref, topics: [OPEN], snapshot: true });
  last().say(shot([job(1, 'open')]));
  last().say({ type: 'subscribed', ref: first.ref, topics: ['jobs', OPEN], id: id(11) });
  last().say({ type: 'refused', ref: second.ref, message: 'no column state' });
  assert.deepEqual((await taken).topics, ['jobs', OPEN]);
  await assert.rejects(refused, { message: 'no column state' });
  assert.deepEqual(seen.snapshots, [['jobs', [1]]]);
  last().drop();
  pass(250);
  assert.deepEqual(last().allTopics, ['jobs', OPEN], 'what was refused is not asked for again');
  assert.equal(last().since, id(10));
});

test('subscribe: what a drop left open is answered by ready, or by the end', async () => {
  start({ topics: ['jobs'] });
  live();
  const asked = connection.subscribe(OPEN, { snapshot: true });
  last().say(shot([job(1, 'open')], 1, true));
  last().drop();
  pass(250);
  assert.equal(last().since, null, 'its rows were not whole');
  last().accept();
  last().say(shot([job(1, 'open')]));
  last().say(ready(id(10)));
  await asked;
  const never = connection.subscribe('news');
  connection.close();
  await assert.rejects(never);
  await assert.rejects(connection.subscribe('late'));
});

test('a snapshot of its own that is refused: it begins anew, and hears why not', () => {
  const seen = start({ topics: ['jobs'], snapshot: true });
  live();
  last().say(shot([job(1, 'open')]));
  last().say({ id: id(11), topic: 'jobs', op: 'bulk', at: '', statement: 'insert', rows: 1000 });
  pass(0);
  last().say({ type: 'refused', ref: last().sent[0].ref, message: 'too large' });
  assert.deepEqual([connection.state, seen.infos.at(-1).message], ['offline', 'too large']);
  pass(250);
  assert.equal(last().since, null);
  last().accept();
  last().drop(4502, 'the snapshot is too large');
  assert.equal(connection.state, 'closed');
});

test('unsubscribe: rows of a topic that is followed no more, or with fewer filters', () => {
  const seen = start({ topics: [OPEN, 'jobs?id=eq.7'], snapshot: true });
  live();
  last().say(shot([job(1, 'open'), job(7, 'done')]));
  connection.unsubscribe('jobs?id=eq.7');
  pass(0);
  const frame = last().sent.at(-1);
  assert.deepEqual([frame.topics, frame.snapshot], [[OPEN], true]);
  last().say(shot([job(1, 'open')]));
  last().say({ type: 'subscribed', ref: frame.ref, topics: [OPEN], id: id(10) });
  connection.unsubscribe(OPEN);
  last().say(changed(11, 'insert', 2, { to: 'open' }));
  assert.deepEqual(seen.rows, ['1:open 7:done', '1:open']);
  pass(5000);
  assert.equal(last().sent.length, 3);
});

for (const transport of ['websocket', 'sse']) {
  test(`${transport}: a filter that cannot be: the page is told why, and does not come back`, async () => {
    const asked = [];
    const detail = 'topic jobs has no column state; it has id, status';
    mock.method(globalThis, 'fetch', async (url, { signal }) => {
      asked.push([url, signal]);
      return { status: 400, json: async () => ({ detail }) };
    });
    try {
      const seen = start({ transport, topics: ['jobs?state=eq.open'] });
      last().drop();
      await new Promise(setImmediate);
      assert.equal(connection.state, 'closed');
      assert.deepEqual(seen.infos.at(-1), { worker: undefined, code: 400, message: detail });
      assert.equal(asked[0][0], `https://board.example/${transport === 'sse' ? 'api/stream' : 'ws'}?topics=jobs%3Fstate%3Deq.open`);
      assert.ok(asked[0][1].aborted, 'a stream is not read');
      // One that is added later is given up, and the others stay.
      start({ transport: 'sse', topics: [OPEN] });
      live();
      const refused = connection.subscribe('jobs?state=eq.open');
      last().drop();
      await assert.rejects(refused, { message: detail });
      assert.deepEqual(last().allTopics, [OPEN]);
      assert.equal(connection.state, 'connecting');
    } finally {
      mock.restoreAll();
    }
  });
}

test('a worker that is away is no refusal', async () => {
  mock.method(globalThis, 'fetch', async () => { throw new TypeError('failed to fetch'); });
  try {
    start({ topics: [OPEN] });
    last().drop();
    await new Promise(setImmediate);
    assert.equal(connection.state, 'offline');
    pass(250);
    assert.equal(connection.state, 'connecting');
  } finally {
    mock.restoreAll();
  }
});
