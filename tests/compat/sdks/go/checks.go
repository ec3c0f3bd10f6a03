// What is checked, each by one function; main.go runs them in this order.

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	common "go.temporal.io/api/common/v1"
	enums "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

func (c *checks) all() []check {
	return []check{
		{"activity-retry", func(ctx context.Context) error { return answers(ctx, c, int32(3), retries) }},
		{"activity-heartbeat-details", func(ctx context.Context) error { return answers(ctx, c, 42, resumes) }},
		{"activity-failure", c.activityFailure},
		{"activity-cancel-heartbeat", c.activityCancel},
		{"activity-fan-out", func(ctx context.Context) error { return answers(ctx, c, 1225, manyActivities, 50) }},
		{"signal-query", c.signalQuery},
		{"signal-with-start", c.signalWithStart},
		{"update", c.update},
		{"update-with-start", c.updateWithStart},
		{"child", c.child},
		{"child-cancel", func(ctx context.Context) error { return answers(ctx, c, true, cancelsChild) }},
		{"continue-as-new", func(ctx context.Context) error { return answers(ctx, c, 3, again, 3, 0) }},
		{"timers", c.timers},
		{"local-activity", func(ctx context.Context) error { return answers(ctx, c, int32(3), localActivity) }},
		{"search-attributes", c.searchAttributes},
		{"memo", c.memo},
		{"describe", c.describe},
		{"terminate", c.terminate},
		{"time-out", c.timeOut},
		{"already-started", c.alreadyStarted},
		{"reset", c.reset},
		{"patch", func(ctx context.Context) error { return answers(ctx, c, 11, patchedFlow) }},
		{"replay", c.replay},
		{"async-completion", c.asyncCompletion},
		{"external-workflow", c.externalWorkflow},
		{"session", func(ctx context.Context) error { return answers(ctx, c, 5, inSession) }},
		{"cron", c.cron},
		{"eager-start", c.eagerStart},
		{"task-queue", c.taskQueue},
	}
}

func (c *checks) activityFailure(ctx context.Context) error {
	handle, err := c.start(ctx, fails)
	if err != nil {
		return err
	}
	var failure *temporal.ApplicationError
	if err := handle.Get(ctx, nil); !errors.As(err, &failure) {
		return fmt.Errorf("not an application error: %w", err)
	}
	var detail string
	if err := failure.Details(&detail); err != nil {
		return err
	}
	return same("type and detail", failure.Type()+" "+detail, "ForGood a detail")
}

func (c *checks) activityCancel(ctx context.Context) error {
	handle, err := c.start(ctx, beatsUntilCancelled)
	if err != nil {
		return err
	}
	err = until("a heartbeat", func() (bool, error) {
		described, err := c.client.DescribeWorkflowExecution(ctx, handle.GetID(), "")
		pending := described.GetPendingActivities()
		return len(pending) == 1 && pending[0].HeartbeatDetails != nil, err
	})
	if err != nil {
		return err
	}
	if err := c.client.CancelWorkflow(ctx, handle.GetID(), ""); err != nil {
		return err
	}
	if err := handle.Get(ctx, nil); !temporal.IsCanceledError(err) {
		return fmt.Errorf("not cancelled: %w", err)
	}
	return status(ctx, c.client, handle, enums.WORKFLOW_EXECUTION_STATUS_CANCELED)
}

func (c *checks) total(ctx context.Context, id string) (total int, err error) {
	value, err := c.client.QueryWorkflow(ctx, id, "", "total")
	if err == nil {
		err = value.Get(&total)
	}
	return
}

func (c *checks) finish(ctx context.Context, handle client.WorkflowRun, want int) error {
	if err := c.client.SignalWorkflow(ctx, handle.GetID(), "", "finish", nil); err != nil {
		return err
	}
	var total int
	if err := handle.Get(ctx, &total); err != nil {
		return err
	}
	return same("the total", total, want)
}

func (c *checks) signalQuery(ctx context.Context) error {
	handle, err := c.start(ctx, counter, 0)
	if err != nil {
		return err
	}
	for by := range 4 {
		if err := c.client.SignalWorkflow(ctx, handle.GetID(), "", "add", by); err != nil {
			return err
		}
	}
	total, err := c.total(ctx, handle.GetID())
	if err = errors.Join(err, same("the total by query", total, 6)); err != nil {
		return err
	}
	var failed *serviceerror.QueryFailed
	if _, err := c.client.QueryWorkflow(ctx, handle.GetID(), "", "no-such-query"); !errors.As(err, &failed) {
		return fmt.Errorf("an unknown query: %w", err)
	}
	trace, err := c.client.QueryWorkflow(ctx, handle.GetID(), "", "__stack_trace")
	if err != nil {
		return err
	}
	var text string
	if err := trace.Get(&text); err != nil || text == "" {
		return fmt.Errorf("no stack trace: %w", err)
	}
	if err := c.finish(ctx, handle, 6); err != nil {
		return err
	}
	total, err = c.total(ctx, handle.GetID())
	return errors.Join(err, same("the total of a closed run", total, 6))
}

func (c *checks) signalWithStart(ctx context.Context) error {
	options := c.options()
	one, err := c.client.SignalWithStartWorkflow(ctx, options.ID, "add", 4, options, counter, 0)
	if err != nil {
		return err
	}
	two, err := c.client.SignalWithStartWorkflow(ctx, options.ID, "add", 4, options, counter, 0)
	if err != nil {
		return err
	}
	if err := same("the run", two.GetRunID(), one.GetRunID()); err != nil {
		return err
	}
	return c.finish(ctx, two, 8)
}

func (c *checks) sendUpdate(ctx context.Context, id, updateID string, by int, stage client.WorkflowUpdateStage) (int, error) {
	handle, err := c.client.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: id, UpdateID: updateID, UpdateName: "addUpdate", Args: []any{by}, WaitForStage: stage,
	})
	if err != nil {
		return 0, err
	}
	var total int
	return total, handle.Get(ctx, &total)
}

func (c *checks) update(ctx context.Context) error {
	handle, err := c.start(ctx, counter, 0)
	if err != nil {
		return err
	}
	id := handle.GetID()
	total, err := c.sendUpdate(ctx, id, "", 5, client.WorkflowUpdateStageCompleted)
	if err = errors.Join(err, same("after the first update", total, 5)); err != nil {
		return err
	}
	var refused *temporal.ApplicationError
	if _, err := c.sendUpdate(ctx, id, "", -1, client.WorkflowUpdateStageCompleted); !errors.As(err, &refused) {
		return fmt.Errorf("a refused update: %w", err)
	}
	for range 2 {
		total, err = c.sendUpdate(ctx, id, "mine", 2, client.WorkflowUpdateStageAccepted)
		if err = errors.Join(err, same("after the accepted update", total, 7)); err != nil {
			return err
		}
	}
	again := c.client.GetWorkflowUpdateHandle(client.GetWorkflowUpdateHandleOptions{WorkflowID: id, UpdateID: "mine"})
	if err := again.Get(ctx, &total); err != nil {
		return err
	}
	if err := c.finish(ctx, handle, 7); err != nil {
		return err
	}
	var gone *serviceerror.NotFound
	if _, err := c.sendUpdate(ctx, id, "", 1, client.WorkflowUpdateStageCompleted); !errors.As(err, &gone) {
		return fmt.Errorf("an update of a closed run: %w", err)
	}
	return nil
}

func (c *checks) updateWithStart(ctx context.Context) error {
	options := c.options()
	options.WorkflowIDConflictPolicy = enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
	var handle client.WorkflowRun
	for _, want := range []int{101, 102} {
		start := c.client.NewWithStartWorkflowOperation(options, counter, 100)
		updated, err := c.client.UpdateWithStartWorkflow(ctx, client.UpdateWithStartWorkflowOptions{
			StartWorkflowOperation: start,
			UpdateOptions: client.UpdateWorkflowOptions{
				UpdateName: "addUpdate", Args: []any{1}, WaitForStage: client.WorkflowUpdateStageCompleted,
			},
		})
		if err != nil {
			return err
		}
		var total int
		if err := updated.Get(ctx, &total); err != nil {
			return err
		}
		if err := same("the total", total, want); err != nil {
			return err
		}
		if handle, err = start.Get(ctx); err != nil {
			return err
		}
	}
	return c.finish(ctx, handle, 102)
}

func (c *checks) child(ctx context.Context) error {
	handle, err := c.start(ctx, parent)
	if err != nil {
		return err
	}
	var answers []string
	if err := handle.Get(ctx, &answers); err != nil {
		return err
	}
	return same("the answers", fmt.Sprint(answers), "[child a child b 15]")
}

func (c *checks) timers(ctx context.Context) error {
	handle, err := c.start(ctx, timers)
	if err != nil {
		return err
	}
	var took time.Duration
	if err := handle.Get(ctx, &took); err != nil {
		return err
	}
	if took < 95*time.Millisecond || took > time.Second {
		return fmt.Errorf("a timer of 100 ms took %v", took)
	}
	return nil
}

func (c *checks) searchAttributes(ctx context.Context) error {
	options := c.options()
	options.TypedSearchAttributes = temporal.NewSearchAttributes(keywordKey.ValueSet("from-start"))
	handle, err := c.client.ExecuteWorkflow(ctx, options, attributes)
	if err != nil {
		return err
	}
	query := fmt.Sprintf("HoldfastKeyword = 'from-workflow' AND HoldfastInt > 6 AND WorkflowId = '%s'", options.ID)
	err = until("the upsert", func() (bool, error) {
		listed, err := c.client.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{Query: query})
		return len(listed.GetExecutions()) == 1, err
	})
	if err != nil {
		return err
	}
	counted, err := c.client.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{Query: query})
	if err = errors.Join(err, same("the count", counted.GetCount(), 1)); err != nil {
		return err
	}
	described, err := c.client.DescribeWorkflow(ctx, options.ID, "")
	if err != nil {
		return err
	}
	value, _ := described.TypedSearchAttributes.GetKeyword(keywordKey)
	if err := same("the attribute", value, "from-workflow"); err != nil {
		return err
	}
	if err := c.client.SignalWorkflow(ctx, options.ID, "", "finish", nil); err != nil {
		return err
	}
	return handle.Get(ctx, nil)
}

func (c *checks) memo(ctx context.Context) error {
	options := c.options()
	options.Memo = map[string]any{"first": "one"}
	handle, err := c.client.ExecuteWorkflow(ctx, options, attributes)
	if err != nil {
		return err
	}
	if err := c.client.SignalWorkflow(ctx, options.ID, "", "finish", nil); err != nil {
		return err
	}
	if err := handle.Get(ctx, nil); err != nil {
		return err
	}
	described, err := c.client.DescribeWorkflowExecution(ctx, options.ID, "")
	if err != nil {
		return err
	}
	return same("fields in the memo", len(described.WorkflowExecutionInfo.Memo.Fields), 2)
}

func (c *checks) describe(ctx context.Context) error {
	options := c.options()
	options.StaticSummary, options.StaticDetails = "a summary", "some details"
	options.WorkflowExecutionTimeout = time.Hour
	if _, err := c.client.ExecuteWorkflow(ctx, options, counter, 0); err != nil {
		return err
	}
	described, err := c.client.DescribeWorkflow(ctx, options.ID, "")
	if err != nil {
		return err
	}
	summary, err := described.GetStaticSummary()
	if err = errors.Join(err, same("the summary", summary, "a summary")); err != nil {
		return err
	}
	if err := same("the type", described.WorkflowType.Name, "counter"); err != nil {
		return err
	}
	return c.client.TerminateWorkflow(ctx, options.ID, "", "described")
}

func (c *checks) terminate(ctx context.Context) error {
	handle, err := c.start(ctx, counter, 0)
	if err != nil {
		return err
	}
	if err := c.client.TerminateWorkflow(ctx, handle.GetID(), "", "enough", "a detail"); err != nil {
		return err
	}
	var terminated *temporal.TerminatedError
	if err := handle.Get(ctx, nil); !errors.As(err, &terminated) {
		return fmt.Errorf("not terminated: %w", err)
	}
	var gone *serviceerror.NotFound
	if err := c.client.SignalWorkflow(ctx, handle.GetID(), "", "add", 1); !errors.As(err, &gone) {
		return fmt.Errorf("a signal to a terminated run: %w", err)
	}
	return status(ctx, c.client, handle, enums.WORKFLOW_EXECUTION_STATUS_TERMINATED)
}

func (c *checks) timeOut(ctx context.Context) error {
	options := c.options()
	options.WorkflowRunTimeout = 300 * time.Millisecond
	handle, err := c.client.ExecuteWorkflow(ctx, options, counter, 0)
	if err != nil {
		return err
	}
	var late *temporal.TimeoutError
	if err := handle.Get(ctx, nil); !errors.As(err, &late) {
		return fmt.Errorf("not timed out: %w", err)
	}
	return status(ctx, c.client, handle, enums.WORKFLOW_EXECUTION_STATUS_TIMED_OUT)
}

func (c *checks) alreadyStarted(ctx context.Context) error {
	options := c.options()
	options.WorkflowExecutionErrorWhenAlreadyStarted = true
	first, err := c.client.ExecuteWorkflow(ctx, options, counter, 0)
	if err != nil {
		return err
	}
	var exists *serviceerror.WorkflowExecutionAlreadyStarted
	if _, err := c.client.ExecuteWorkflow(ctx, options, counter, 0); !errors.As(err, &exists) {
		return fmt.Errorf("a second start: %w", err)
	}
	options.WorkflowIDConflictPolicy = enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
	used, err := c.client.ExecuteWorkflow(ctx, options, counter, 0)
	if err = errors.Join(err, same("the run", used.GetRunID(), first.GetRunID())); err != nil {
		return err
	}
	options.WorkflowIDConflictPolicy = enums.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING
	if _, err = c.client.ExecuteWorkflow(ctx, options, counter, 0); err != nil {
		return err
	}
	if err := status(ctx, c.client, first, enums.WORKFLOW_EXECUTION_STATUS_TERMINATED); err != nil {
		return err
	}
	return c.client.TerminateWorkflow(ctx, options.ID, "", "")
}

func (c *checks) reset(ctx context.Context) error {
	handle, err := c.start(ctx, counter, 0)
	if err != nil {
		return err
	}
	id := handle.GetID()
	if _, err := c.sendUpdate(ctx, id, "", 5, client.WorkflowUpdateStageCompleted); err != nil {
		return err
	}
	if err := c.client.SignalWorkflow(ctx, id, "", "add", 2); err != nil {
		return err
	}
	seven := func() (bool, error) {
		total, err := c.total(ctx, id)
		return total == 7, err
	}
	if err := until("the signal", seven); err != nil {
		return err
	}
	answer, err := c.client.ResetWorkflowExecution(ctx, &workflowservice.ResetWorkflowExecutionRequest{
		Namespace:                 "default",
		WorkflowExecution:         &common.WorkflowExecution{WorkflowId: id},
		WorkflowTaskFinishEventId: 4,
		RequestId:                 id,
		Reason:                    "a check",
	})
	if err != nil {
		return err
	}
	if err := until("the update and the signal again", seven); err != nil {
		return err
	}
	return c.finish(ctx, c.client.GetWorkflow(ctx, id, answer.RunId), 7)
}

func (c *checks) replay(ctx context.Context) error {
	handle, err := c.start(ctx, parent)
	if err != nil {
		return err
	}
	if err := handle.Get(ctx, nil); err != nil {
		return err
	}
	replayer := worker.NewWorkflowReplayer()
	replayer.RegisterWorkflow(parent)
	execution := c.client.GetWorkflowHistory(ctx, handle.GetID(), handle.GetRunID(), false, 0)
	events := 0
	for ; execution.HasNext(); events++ {
		if _, err := execution.Next(); err != nil {
			return err
		}
	}
	if events < 15 {
		return fmt.Errorf("only %d events", events)
	}
	service := c.client.WorkflowService()
	run := workflow.Execution{ID: handle.GetID(), RunID: handle.GetRunID()}
	return replayer.ReplayWorkflowExecution(ctx, service, quiet(), "default", run)
}

func (c *checks) asyncCompletion(ctx context.Context) error {
	for _, mode := range []string{"token", "id"} {
		handle, err := c.start(ctx, waitsForOutside, mode)
		if err != nil {
			return err
		}
		var at where
		err = until("the activity", func() (bool, error) {
			value, found := tokens.Load(mode)
			if found {
				at = value.(where)
			}
			return found, nil
		})
		if err != nil {
			return err
		}
		if mode == "token" {
			if err = c.client.RecordActivityHeartbeat(ctx, at.token, "still there"); err != nil {
				return err
			}
			err = c.client.CompleteActivity(ctx, at.token, mode, nil)
		} else {
			err = c.client.CompleteActivityByID(ctx, "default", at.workflowID, at.runID, at.activityID, mode, nil)
		}
		if err != nil {
			return err
		}
		var answer string
		if err = handle.Get(ctx, &answer); err != nil {
			return err
		}
		if err = same("the answer", answer, mode); err != nil {
			return err
		}
		var gone *serviceerror.NotFound
		if err := c.client.CompleteActivity(ctx, at.token, mode, nil); !errors.As(err, &gone) {
			return fmt.Errorf("completed twice: %w", err)
		}
	}
	return nil
}

func (c *checks) externalWorkflow(ctx context.Context) error {
	target, err := c.start(ctx, counter, 0)
	if err != nil {
		return err
	}
	sender, err := c.start(ctx, signalsAnother, target.GetID())
	if err != nil {
		return err
	}
	if err := sender.Get(ctx, nil); err != nil {
		return err
	}
	var total int
	if err := target.Get(ctx, &total); err != nil {
		return err
	}
	victim, err := c.start(ctx, counter, 0)
	if err != nil {
		return err
	}
	killer, err := c.start(ctx, cancelsAnother, victim.GetID())
	if err != nil {
		return err
	}
	var said string
	if err := killer.Get(ctx, &said); err != nil {
		return err
	}
	if said == "<nil>" {
		return errors.New("a signal to a workflow that does not exist succeeded")
	}
	if err := victim.Get(ctx, nil); !temporal.IsCanceledError(err) {
		return fmt.Errorf("not cancelled: %w", err)
	}
	return same("the total", total, 3)
}

func (c *checks) cron(ctx context.Context) error {
	options := c.options()
	options.CronSchedule = "@every 1s"
	if _, err := c.client.ExecuteWorkflow(ctx, options, child, "cron"); err != nil {
		return err
	}
	query := fmt.Sprintf("WorkflowId = '%s'", options.ID)
	err := until("two runs", func() (bool, error) {
		counted, err := c.client.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{Query: query})
		return counted.GetCount() >= 3, err
	})
	return errors.Join(err, c.client.TerminateWorkflow(ctx, options.ID, "", "enough"))
}

func (c *checks) eagerStart(ctx context.Context) error {
	options := c.options()
	options.EnableEagerStart = true
	handle, err := c.client.ExecuteWorkflow(ctx, options, child, "eager")
	if err != nil {
		return err
	}
	return handle.Get(ctx, nil)
}

func (c *checks) taskQueue(ctx context.Context) error {
	described, err := c.client.DescribeTaskQueue(ctx, c.queue, enums.TASK_QUEUE_TYPE_WORKFLOW)
	if err != nil {
		return err
	}
	if len(described.Pollers) == 0 {
		return errors.New("no pollers")
	}
	enhanced, err := c.client.DescribeTaskQueueEnhanced(ctx, client.DescribeTaskQueueEnhancedOptions{
		TaskQueue: c.queue, ReportStats: true, ReportPollers: true,
		TaskQueueTypes: []client.TaskQueueType{client.TaskQueueTypeWorkflow, client.TaskQueueTypeActivity},
	})
	if err != nil {
		return err
	}
	return same("versions", len(enhanced.VersionsInfo), 1)
}
