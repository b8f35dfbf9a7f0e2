// The browser client: filters, snapshots, and what is asked for on the way.
//   node --test snapshot.test.mjs

import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import { connection, id, last, live, pass, ready, sockets, start } from './fakes.mjs';

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
    assert.equal(last().since, id(13), 'nothing is owed any more');
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
  assert.equal(last().since, id(11));
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
