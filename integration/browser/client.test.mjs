// The browser client: one connection that stays.
//   node --test client.test.mjs

import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import { connection, event, forget, id, last, live, open, page, pass, ready, sockets, start } from './fakes.mjs';

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
    forget();
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
