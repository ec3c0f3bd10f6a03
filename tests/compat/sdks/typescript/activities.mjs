// The activities of the check.

import { activityInfo, Context, ApplicationFailure, CompleteAsyncError } from '@temporalio/activity';

export const tokens = new Map();

export async function echo(what) {
  return what;
}

export async function failTwice() {
  const { attempt } = activityInfo();
  if (attempt < 3) throw new Error(`attempt ${attempt}`);
  return attempt;
}

export async function failForGood() {
  throw ApplicationFailure.nonRetryable('for good', 'ForGood', { why: 'a detail' });
}

export async function resumesFromHeartbeat() {
  const context = Context.current();
  if (context.info.attempt === 1) {
    context.heartbeat({ at: 42 });
    throw new Error('after a heartbeat');
  }
  return context.info.heartbeatDetails.at;
}

export async function beat() {
  const context = Context.current();
  for (;;) {
    context.heartbeat('beat');
    await context.sleep(100);
  }
}

export async function completedOutside(mode) {
  const { taskToken, workflowExecution, activityId } = activityInfo();
  tokens.set(mode, { taskToken, activityId, ...workflowExecution });
  throw new CompleteAsyncError();
}

export async function failsOnceLocally() {
  const { attempt } = activityInfo();
  if (attempt < 2) throw new Error('once');
  return attempt;
}
