// Temporal's TypeScript SDK against a server: `node check.mjs HOST:PORT`, one line a check, exit 1 if one failed.

import { randomUUID } from 'node:crypto';
import { strict as assert } from 'node:assert';
import { fileURLToPath } from 'node:url';
import {
  Client,
  Connection,
  WithStartWorkflowOperation,
  WorkflowFailedError,
  WorkflowUpdateFailedError,
  WorkflowUpdateStage,
} from '@temporalio/client';
import { NativeConnection, Runtime, DefaultLogger, Worker } from '@temporalio/worker';
import { CancelledFailure, TerminatedFailure, TimeoutFailure, ActivityFailure } from '@temporalio/common';
import * as activities from './activities.mjs';

const address = process.argv[2] ?? '127.0.0.1:7233';
const only = process.argv[3];
Runtime.install({ logger: new DefaultLogger('ERROR') });
const connection = await Connection.connect({ address });
const client = new Client({ connection });
const native = await NativeConnection.connect({ address });
const taskQueue = `typescript-${randomUUID()}`;
const workflowsPath = fileURLToPath(new URL('./workflows.mjs', import.meta.url));
const newWorker = () => Worker.create({ connection: native, taskQueue, workflowsPath, activities });
const checks = [];
const check = (name, body) => checks.push([name, body]);
const options = (more = {}) => ({ taskQueue, workflowId: `ts-${randomUUID()}`, ...more });
const start = (type, args = [], more = {}) => client.workflow.start(type, options({ args, ...more }));
const execute = (type, args = [], more = {}) => client.workflow.execute(type, options({ args, ...more }));

async function until(what, body) {
  const deadline = Date.now() + 10_000;
  for (;;) {
    const value = await body();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`waited 10 s for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function events(handle) {
  return (await handle.fetchHistory()).events ?? [];
}

check('activity-retry', async () => assert.equal(await execute('retries'), 3));

check('activity-heartbeat-details', async () => assert.equal(await execute('resumes'), 42));

check('activity-failure', async () => {
  const error = await execute('fails').catch((caught) => caught);
  assert(error instanceof WorkflowFailedError);
  assert(error.cause instanceof ActivityFailure);
  assert.equal(error.cause.cause.type, 'ForGood');
  assert.deepEqual(error.cause.cause.details, [{ why: 'a detail' }]);
});

check('activity-cancel-heartbeat', async () => {
  const handle = await start('beatsUntilCancelled');
  await until('a heartbeat', async () => (await handle.describe()).raw.pendingActivities?.[0]?.heartbeatDetails);
  await handle.cancel();
  const error = await handle.result().catch((caught) => caught);
  assert(error.cause instanceof CancelledFailure, String(error.cause));
  assert.equal((await handle.describe()).status.name, 'CANCELLED');
});

check('activity-fan-out', async () => assert.equal(await execute('manyActivities', [50]), 1225));

check('signal-query', async () => {
  const handle = await start('counter');
  await handle.signal('add', 2);
  await handle.signal('add', 3);
  assert.equal(await handle.query('total'), 5);
  await assert.rejects(handle.query('no-such-query'), { name: 'QueryNotRegisteredError' });
  await handle.signal('finish');
  assert.equal(await handle.result(), 5);
  assert.equal(await handle.query('total'), 5);
  const trace = await handle.query('__stack_trace');
  assert.equal(typeof trace, 'string');
});

check('signal-with-start', async () => {
  const workflowId = `ts-${randomUUID()}`;
  const both = { taskQueue, workflowId, signal: 'add', signalArgs: [4] };
  const one = await client.workflow.signalWithStart('counter', both);
  const two = await client.workflow.signalWithStart('counter', both);
  assert.equal(one.signaledRunId, two.signaledRunId);
  await two.signal('finish');
  assert.equal(await two.result(), 8);
});

check('update', async () => {
  const handle = await start('counter');
  assert.equal(await handle.executeUpdate('addUpdate', { args: [5] }), 5);
  const error = await handle.executeUpdate('addUpdate', { args: [-1] }).catch((caught) => caught);
  assert(error instanceof WorkflowUpdateFailedError);
  assert.equal(error.cause.message, 'negative');
  const accepted = await handle.startUpdate('addUpdate', {
    args: [2],
    updateId: 'mine',
    waitForStage: WorkflowUpdateStage.ACCEPTED,
  });
  assert.equal(await accepted.result(), 7);
  assert.equal(await handle.getUpdateHandle('mine').result(), 7);
  assert.equal(await handle.executeUpdate('addUpdate', { args: [2], updateId: 'mine' }), 7);
  await handle.signal('finish');
  assert.equal(await handle.result(), 7);
  const late = await handle.executeUpdate('addUpdate', { args: [1] }).catch((caught) => caught);
  assert.equal(late.name, 'WorkflowNotFoundError', String(late));
});

check('update-with-start', async () => {
  const workflowId = `ts-${randomUUID()}`;
  const operation = () =>
    new WithStartWorkflowOperation('counter', {
      taskQueue,
      workflowId,
      args: [100],
      workflowIdConflictPolicy: 'USE_EXISTING',
    });
  const first = operation();
  const answer = await client.workflow.executeUpdateWithStart('addUpdate', {
    startWorkflowOperation: first,
    args: [1],
  });
  assert.equal(answer, 101);
  const second = operation();
  assert.equal(
    await client.workflow.executeUpdateWithStart('addUpdate', { startWorkflowOperation: second, args: [1] }),
    102,
  );
  const [a, b] = [await first.workflowHandle(), await second.workflowHandle()];
  assert.equal(a.firstExecutionRunId, b.firstExecutionRunId);
  await a.signal('finish');
  assert.equal(await a.result(), 102);
});

check('child', async () =>
  assert.deepEqual(await execute('parent'), ['child a', 15, 'child 1', 'child 2', 'child 3']));

check('child-cancel', async () => assert.equal(await execute('cancelsChild'), true));

check('continue-as-new', async () => assert.equal(await execute('again', [3]), 3));

check('timers', async () => {
  const waited = await execute('timers');
  assert(waited >= 95 && waited < 1000, `100 ms took ${waited}`);
});

check('local-activity', async () => assert.equal(await execute('localActivity'), 2));

check('search-attributes', async () => {
  const handle = await start('attributes', [], { searchAttributes: { HoldfastKeyword: ['from-start'] } });
  const found = await until('the upsert', async () => {
    const described = await handle.describe();
    return described.searchAttributes.HoldfastInt?.[0] === 7 && described;
  });
  assert.deepEqual(found.searchAttributes.HoldfastKeyword, ['from-workflow']);
  const query = `HoldfastKeyword = 'from-workflow' AND HoldfastInt > 6 AND WorkflowId = '${handle.workflowId}'`;
  const listed = [];
  for await (const one of client.workflow.list({ query })) listed.push(one.workflowId);
  assert.deepEqual(listed, [handle.workflowId]);
  assert.equal(Number((await client.workflow.count(query)).count), 1);
  const grouped = await client.workflow.count(`TaskQueue = '${taskQueue}' GROUP BY ExecutionStatus`);
  assert(grouped.groups.length >= 1);
  await handle.signal('finish');
  await handle.result();
});

check('memo', async () => {
  const handle = await start('attributes', [], { memo: { first: { deep: [1, 2] } } });
  await handle.signal('finish');
  await handle.result();
  assert.deepEqual((await handle.describe()).memo, { first: { deep: [1, 2] }, added: 'later' });
});

check('describe', async () => {
  const handle = await start('counter', [], {
    staticSummary: 'a summary',
    staticDetails: 'some details',
    workflowExecutionTimeout: '1h',
  });
  const described = await handle.describe();
  assert.equal(described.status.name, 'RUNNING');
  assert.equal(described.type, 'counter');
  assert.equal(described.taskQueue, taskQueue);
  assert.equal(await described.staticSummary(), 'a summary');
  assert.equal(await described.staticDetails(), 'some details');
  await handle.terminate('described');
});

check('terminate', async () => {
  const handle = await start('counter');
  await handle.terminate('enough', 'a detail');
  const error = await handle.result().catch((caught) => caught);
  assert(error.cause instanceof TerminatedFailure);
  assert.equal((await handle.describe()).status.name, 'TERMINATED');
  await assert.rejects(handle.signal('add', 1), { name: 'WorkflowNotFoundError' });
});

check('time-out', async () => {
  const handle = await start('counter', [], { workflowRunTimeout: '300ms' });
  const error = await handle.result().catch((caught) => caught);
  assert(error.cause instanceof TimeoutFailure, String(error.cause));
});

check('already-started', async () => {
  const workflowId = `ts-${randomUUID()}`;
  const first = await start('counter', [], { workflowId });
  await assert.rejects(start('counter', [], { workflowId }), { name: 'WorkflowExecutionAlreadyStartedError' });
  const used = await start('counter', [], { workflowId, workflowIdConflictPolicy: 'USE_EXISTING' });
  assert.equal(used.firstExecutionRunId, first.firstExecutionRunId);
  const third = await start('counter', [], { workflowId, workflowIdConflictPolicy: 'TERMINATE_EXISTING' });
  assert.notEqual(third.firstExecutionRunId, first.firstExecutionRunId);
  await third.terminate();
  await assert.rejects(start('child', [1], { workflowId, workflowIdReusePolicy: 'REJECT_DUPLICATE' }), {
    name: 'WorkflowExecutionAlreadyStartedError',
  });
});

check('reset', async () => {
  const handle = await start('counter');
  await handle.executeUpdate('addUpdate', { args: [5] });
  await handle.signal('add', 2);
  await until('the signal', async () => (await handle.query('total')) === 7);
  const completed = (await events(handle)).find((event) => event.workflowTaskCompletedEventAttributes);
  const { runId } = await client.workflowService.resetWorkflowExecution({
    namespace: 'default',
    workflowExecution: { workflowId: handle.workflowId },
    workflowTaskFinishEventId: completed.eventId,
    requestId: randomUUID(),
    reason: 'a check',
  });
  assert(runId);
  const after = client.workflow.getHandle(handle.workflowId, runId);
  await until('the signal again', async () => (await after.query('total')) === 7);
  await after.signal('finish');
  assert.equal(await after.result(), 7);
});

check('patch', async () => {
  const handle = await start('patchedFlow');
  assert.equal(await handle.result(), 'new');
  assert((await events(handle)).some((event) => event.markerRecordedEventAttributes));
  const found = (await handle.describe()).searchAttributes.TemporalChangeVersion;
  assert.deepEqual(found, ['a-change']);
});

check('replay', async () => {
  const handle = await start('parent');
  await handle.result();
  await Worker.runReplayHistory({ workflowsPath }, await handle.fetchHistory(), handle.workflowId);
});

check('async-completion', async () => {
  const byToken = await start('waitsForOutside', ['token']);
  const { taskToken } = await until('the token', () => activities.tokens.get('token'));
  await client.activity.heartbeat(taskToken, 'still there');
  await client.activity.complete(taskToken, 'by token');
  assert.equal(await byToken.result(), 'by token');
  const byId = await start('waitsForOutside', ['id']);
  const where = await until('the id', () => activities.tokens.get('id'));
  const full = { workflowId: where.workflowId, runId: where.runId, activityId: where.activityId };
  await client.activity.complete(full, 'by id');
  assert.equal(await byId.result(), 'by id');
  await assert.rejects(client.activity.complete(taskToken, 'twice'), { name: 'ActivityNotFoundError' });
});

check('external-workflow', async () => {
  const target = await start('counter');
  assert.equal(await execute('signalsAnother', [target.workflowId]), true);
  assert.equal(await target.result(), 3);
  const victim = await start('counter');
  assert.notEqual(await execute('cancelsAnother', [victim.workflowId]), 'no error');
  const error = await victim.result().catch((caught) => caught);
  assert(error.cause instanceof CancelledFailure);
});

check('large-payload', async () => {
  const handle = await start('counter', [], { memo: { big: 'x'.repeat(500_000) } });
  await handle.terminate();
  assert.equal((await handle.describe()).memo.big.length, 500_000);
});

async function stopping() {
  // The worker of all other checks was stopped; a run that it has in its cache goes on with another one.
  let worker = await newWorker();
  let running = worker.run();
  const handle = await start('counter');
  assert.equal(await handle.executeUpdate('addUpdate', { args: [1] }), 1);
  let began = Date.now();
  worker.shutdown();
  await running;
  const stopped = Date.now() - began;
  worker = await newWorker();
  running = worker.run();
  began = Date.now();
  assert.equal(await handle.query('total'), 1);
  const handed = Date.now() - began;
  await handle.signal('finish');
  assert.equal(await handle.result(), 1);
  worker.shutdown();
  await running;
  assert(stopped < 3000, `the worker took ${stopped} ms to stop`);
  assert(handed < 3000, `the next worker took ${handed} ms`);
  return `stop ${stopped} ms, next worker's answer ${handed} ms`;
}

let failed = 0;
async function run(name, body) {
  if (only && !name.includes(only)) return;
  const began = performance.now();
  const limit = new Promise((_, reject) => setTimeout(() => reject(new Error('took over 40 s')), 40_000).unref());
  try {
    const note = await Promise.race([body(), limit]);
    console.log(`ok ${name} ${Math.round(performance.now() - began)} ${note ?? ''}`.trimEnd());
  } catch (error) {
    failed += 1;
    const why = String(error?.stack ?? error).replaceAll('\n', ' | ');
    console.log(`FAIL ${name} ${Math.round(performance.now() - began)} ${why} cause: ${error?.cause}`);
  }
}

try {
  await connection.operatorService.addSearchAttributes({
    namespace: 'default',
    searchAttributes: { HoldfastKeyword: 2, HoldfastInt: 3 },
  });
} catch (error) {
  if (!String(error).includes('already exist')) throw error;
}
const bundleBegan = performance.now();
const worker = await newWorker();
const running = worker.run();
console.error(`worker made in ${Math.round(performance.now() - bundleBegan)} ms`);
for (const [name, body] of checks) await run(name, body);
const began = performance.now();
worker.shutdown();
await running;
console.error(`first worker stopped in ${Math.round(performance.now() - began)} ms`);
await run('worker-stop', stopping);
await native.close();
await connection.close();
process.exit(failed ? 1 : 0);
