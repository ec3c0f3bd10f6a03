// The workflows and activities of the check.

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"
)

var (
	keywordKey = temporal.NewSearchAttributeKeyKeyword("HoldfastKeyword")
	intKey     = temporal.NewSearchAttributeKeyInt64("HoldfastInt")
	tokens     sync.Map
)

type where struct {
	token      []byte
	workflowID string
	runID      string
	activityID string
}

func withActivity(ctx workflow.Context) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: 20 * time.Second,
		HeartbeatTimeout:    2 * time.Second,
		WaitForCancellation: true,
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval: 50 * time.Millisecond, BackoffCoefficient: 1, MaximumAttempts: 5,
		},
	})
}

func echo(_ context.Context, n int) (int, error) { return n, nil }

func failTwice(ctx context.Context) (int32, error) {
	attempt := activity.GetInfo(ctx).Attempt
	if attempt < 3 {
		return 0, fmt.Errorf("attempt %d", attempt)
	}
	return attempt, nil
}

func failForGood(context.Context) error {
	return temporal.NewNonRetryableApplicationError("for good", "ForGood", nil, "a detail")
}

func resumesFromHeartbeat(ctx context.Context) (int, error) {
	if activity.GetInfo(ctx).Attempt == 1 {
		activity.RecordHeartbeat(ctx, 42)
		return 0, errors.New("after a heartbeat")
	}
	var at int
	return at, activity.GetHeartbeatDetails(ctx, &at)
}

func beat(ctx context.Context) error {
	for {
		activity.RecordHeartbeat(ctx, "beat")
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func completedOutside(ctx context.Context, mode string) (string, error) {
	info := activity.GetInfo(ctx)
	run := info.WorkflowExecution
	tokens.Store(mode, where{info.TaskToken, run.ID, run.RunID, info.ActivityID})
	return "", activity.ErrResultPending
}

func retries(ctx workflow.Context) (attempt int32, err error) {
	err = workflow.ExecuteActivity(withActivity(ctx), failTwice).Get(ctx, &attempt)
	return
}

func fails(ctx workflow.Context) error {
	return workflow.ExecuteActivity(withActivity(ctx), failForGood).Get(ctx, nil)
}

func resumes(ctx workflow.Context) (at int, err error) {
	err = workflow.ExecuteActivity(withActivity(ctx), resumesFromHeartbeat).Get(ctx, &at)
	return
}

func beatsUntilCancelled(ctx workflow.Context) error {
	return workflow.ExecuteActivity(withActivity(ctx), beat).Get(ctx, nil)
}

func manyActivities(ctx workflow.Context, count int) (int, error) {
	ctx = withActivity(ctx)
	var waiting []workflow.Future
	for n := range count {
		waiting = append(waiting, workflow.ExecuteActivity(ctx, echo, n))
	}
	sum := 0
	for _, one := range waiting {
		var n int
		if err := one.Get(ctx, &n); err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func waitsForOutside(ctx workflow.Context, mode string) (answer string, err error) {
	err = workflow.ExecuteActivity(withActivity(ctx), completedOutside, mode).Get(ctx, &answer)
	return
}

func counter(ctx workflow.Context, total int) (int, error) {
	if err := workflow.SetQueryHandler(ctx, "total", func() (int, error) { return total, nil }); err != nil {
		return 0, err
	}
	update := func(ctx workflow.Context, by int) (int, error) {
		if err := workflow.Sleep(ctx, 20*time.Millisecond); err != nil {
			return 0, err
		}
		total += by
		return total, nil
	}
	validate := func(by int) error {
		if by < 0 {
			return temporal.NewNonRetryableApplicationError("negative", "Negative", nil)
		}
		return nil
	}
	options := workflow.UpdateHandlerOptions{Validator: validate}
	if err := workflow.SetUpdateHandlerWithOptions(ctx, "addUpdate", update, options); err != nil {
		return 0, err
	}
	done := false
	selector := workflow.NewSelector(ctx)
	selector.AddReceive(workflow.GetSignalChannel(ctx, "add"), func(c workflow.ReceiveChannel, _ bool) {
		var by int
		c.Receive(ctx, &by)
		total += by
	})
	selector.AddReceive(workflow.GetSignalChannel(ctx, "finish"), func(c workflow.ReceiveChannel, _ bool) {
		c.Receive(ctx, nil)
		done = true
	})
	selector.AddReceive(ctx.Done(), func(workflow.ReceiveChannel, bool) {})
	for !done {
		if selector.Select(ctx); ctx.Err() != nil {
			return total, ctx.Err()
		}
	}
	return total, nil
}

func child(_ workflow.Context, what string) (string, error) { return "child " + what, nil }

func parent(ctx workflow.Context) ([]string, error) {
	var answers []string
	for _, what := range []string{"a", "b"} {
		var answer string
		if err := workflow.ExecuteChildWorkflow(ctx, child, what).Get(ctx, &answer); err != nil {
			return nil, err
		}
		answers = append(answers, answer)
	}
	running := workflow.ExecuteChildWorkflow(ctx, counter, 10)
	if err := running.SignalChildWorkflow(ctx, "add", 5).Get(ctx, nil); err != nil {
		return nil, err
	}
	if err := running.SignalChildWorkflow(ctx, "finish", nil).Get(ctx, nil); err != nil {
		return nil, err
	}
	var total int
	if err := running.Get(ctx, &total); err != nil {
		return nil, err
	}
	return append(answers, fmt.Sprint(total)), nil
}

func cancelsChild(ctx workflow.Context) (bool, error) {
	inner, cancel := workflow.WithCancel(ctx)
	running := workflow.ExecuteChildWorkflow(inner, counter, 0)
	if err := running.GetChildWorkflowExecution().Get(ctx, nil); err != nil {
		return false, err
	}
	cancel()
	return temporal.IsCanceledError(running.Get(ctx, nil)), nil
}

func again(ctx workflow.Context, left, seen int) (int, error) {
	if left > 0 {
		return 0, workflow.NewContinueAsNewError(ctx, again, left-1, seen+1)
	}
	return seen, nil
}

func timers(ctx workflow.Context) (time.Duration, error) {
	began := workflow.Now(ctx)
	if err := workflow.Sleep(ctx, 100*time.Millisecond); err != nil {
		return 0, err
	}
	one := workflow.Now(ctx).Sub(began)
	inner, cancel := workflow.WithCancel(ctx)
	long := workflow.NewTimer(inner, time.Hour)
	cancel()
	if err := long.Get(ctx, nil); !temporal.IsCanceledError(err) {
		return 0, fmt.Errorf("a cancelled timer: %w", err)
	}
	return one, nil
}

func localActivity(ctx workflow.Context) (attempt int32, err error) {
	ctx = workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{
		StartToCloseTimeout: 5 * time.Second,
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval: 20 * time.Millisecond, BackoffCoefficient: 1, MaximumAttempts: 5,
		},
	})
	err = workflow.ExecuteLocalActivity(ctx, failTwice).Get(ctx, &attempt)
	return
}

func attributes(ctx workflow.Context) error {
	changed := []temporal.SearchAttributeUpdate{keywordKey.ValueSet("from-workflow"), intKey.ValueSet(7)}
	if err := workflow.UpsertTypedSearchAttributes(ctx, changed...); err != nil {
		return err
	}
	if err := workflow.UpsertMemo(ctx, map[string]any{"added": "later"}); err != nil {
		return err
	}
	workflow.GetSignalChannel(ctx, "finish").Receive(ctx, nil)
	return nil
}

func patchedFlow(ctx workflow.Context) (int, error) {
	version := workflow.GetVersion(ctx, "a-change", workflow.DefaultVersion, 3)
	var side int
	encoded := workflow.SideEffect(ctx, func(workflow.Context) any { return 8 })
	if err := encoded.Get(&side); err != nil {
		return 0, err
	}
	err := workflow.Sleep(ctx, 10*time.Millisecond)
	return int(version) + side, err
}

func signalsAnother(ctx workflow.Context, workflowID string) error {
	if err := workflow.SignalExternalWorkflow(ctx, workflowID, "", "add", 3).Get(ctx, nil); err != nil {
		return err
	}
	return workflow.SignalExternalWorkflow(ctx, workflowID, "", "finish", nil).Get(ctx, nil)
}

func cancelsAnother(ctx workflow.Context, workflowID string) (string, error) {
	if err := workflow.RequestCancelExternalWorkflow(ctx, workflowID, "").Get(ctx, nil); err != nil {
		return "", err
	}
	err := workflow.SignalExternalWorkflow(ctx, "there-is-no-such-workflow", "", "add", 1).Get(ctx, nil)
	return fmt.Sprint(err), nil
}

func inSession(ctx workflow.Context) (int, error) {
	session, err := workflow.CreateSession(withActivity(ctx), &workflow.SessionOptions{
		CreationTimeout: 10 * time.Second, ExecutionTimeout: time.Minute,
	})
	if err != nil {
		return 0, err
	}
	defer workflow.CompleteSession(session)
	var answer int
	err = workflow.ExecuteActivity(session, echo, 5).Get(session, &answer)
	return answer, err
}
