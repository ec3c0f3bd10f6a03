// The workflows of the check; bundled by the SDK, so nothing of Node is imported here.

import {
  ActivityCancellationType,
  ApplicationFailure,
  CancellationScope,
  condition,
  continueAsNew,
  defineQuery,
  defineSignal,
  defineUpdate,
  executeChild,
  getExternalWorkflowHandle,
  isCancellation,
  patched,
  proxyActivities,
  proxyLocalActivities,
  setHandler,
  sleep,
  startChild,
  upsertMemo,
  upsertSearchAttributes,
  workflowInfo,
} from '@temporalio/workflow';

const activities = proxyActivities({
  startToCloseTimeout: '20s',
  heartbeatTimeout: '2s',
  cancellationType: ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
  retry: { initialInterval: '50ms', backoffCoefficient: 1, maximumAttempts: 5 },
});
const locals = proxyLocalActivities({
  startToCloseTimeout: '5s',
  retry: { initialInterval: '20ms', maximumAttempts: 3 },
});

export const addSignal = defineSignal('add');
export const finishSignal = defineSignal('finish');
export const totalQuery = defineQuery('total');
export const addUpdate = defineUpdate('addUpdate');

export async function retries() {
  return await activities.failTwice();
}

export async function resumes() {
  return await activities.resumesFromHeartbeat();
}

export async function beatsUntilCancelled() {
  return await activities.beat();
}

export async function fails() {
  await activities.failForGood();
}

export async function counter(start = 0) {
  let total = start;
  let done = false;
  setHandler(addSignal, (by) => void (total += by));
  setHandler(finishSignal, () => void (done = true));
  setHandler(totalQuery, () => total);
  setHandler(
    addUpdate,
    async (by) => {
      await sleep(20);
      total += by;
      return total;
    },
    {
      validator: (by) => {
        if (by < 0) throw ApplicationFailure.nonRetryable('negative', 'Negative');
      },
    },
  );
  await condition(() => done);
  return total;
}

export async function child(what) {
  return `child ${what}`;
}

export async function parent() {
  const first = await executeChild(child, { args: ['a'] });
  const handle = await startChild(counter, { args: [10] });
  await handle.signal(addSignal, 5);
  await handle.signal(finishSignal);
  const rest = await Promise.all([1, 2, 3].map((n) => executeChild(child, { args: [n] })));
  return [first, await handle.result(), ...rest];
}

export async function cancelsChild() {
  try {
    await CancellationScope.cancellable(async () => {
      const handle = await startChild(counter, {});
      CancellationScope.current().cancel();
      await handle.result();
    });
  } catch (error) {
    return isCancellation(error);
  }
  return false;
}

export async function again(left, seen = 0) {
  if (left > 0) return await continueAsNew(left - 1, seen + 1);
  return seen;
}

export async function timers() {
  const began = Date.now();
  await sleep(100);
  const one = Date.now() - began;
  await CancellationScope.cancellable(async () => {
    const sleeping = sleep('1 hour');
    CancellationScope.current().cancel();
    await sleeping;
  }).catch((error) => {
    if (!isCancellation(error)) throw error;
  });
  await Promise.all([sleep(50), sleep(60), sleep(70)]);
  return one;
}

export async function localActivity() {
  return await locals.failsOnceLocally();
}

export async function attributes() {
  upsertSearchAttributes({ HoldfastKeyword: ['from-workflow'], HoldfastInt: [7] });
  upsertMemo({ added: 'later' });
  let done = false;
  setHandler(finishSignal, () => void (done = true));
  await condition(() => done);
  return workflowInfo().memo;
}

export async function patchedFlow() {
  const which = patched('a-change') ? 'new' : 'old';
  await sleep(10);
  return which;
}

export async function waitsForOutside(mode) {
  return await activities.completedOutside(mode);
}

export async function signalsAnother(workflowId) {
  const handle = getExternalWorkflowHandle(workflowId);
  await handle.signal(addSignal, 3);
  await handle.signal(finishSignal);
  return true;
}

export async function cancelsAnother(workflowId) {
  await getExternalWorkflowHandle(workflowId).cancel();
  try {
    await getExternalWorkflowHandle('there-is-no-such-workflow').signal(addSignal, 1);
  } catch (error) {
    return error.name;
  }
  return 'no error';
}

export async function manyActivities(count) {
  const answers = await Promise.all(Array.from({ length: count }, (_, n) => activities.echo(n)));
  return answers.reduce((sum, n) => sum + n, 0);
}
