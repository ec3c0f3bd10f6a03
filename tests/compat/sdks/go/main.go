// Temporal's Go SDK against a server: `go run . HOST:PORT [PART OF A NAME]`, one line a check, exit 1 if one failed.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"strings"
	"time"

	enums "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
)

type checks struct {
	client client.Client
	queue  string
	serial int
}

type check struct {
	name string
	body func(ctx context.Context) error
}

func quiet() sdklog.Logger {
	return sdklog.NewStructuredLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))
}

func (c *checks) id() string {
	c.serial++
	return fmt.Sprintf("%s-%d", c.queue, c.serial)
}

func (c *checks) options() client.StartWorkflowOptions {
	return client.StartWorkflowOptions{ID: c.id(), TaskQueue: c.queue}
}

func (c *checks) start(ctx context.Context, run any, arguments ...any) (client.WorkflowRun, error) {
	return c.client.ExecuteWorkflow(ctx, c.options(), run, arguments...)
}

// answers runs a workflow and compares what it returns.
func answers[T comparable](ctx context.Context, c *checks, want T, run any, arguments ...any) error {
	handle, err := c.start(ctx, run, arguments...)
	if err != nil {
		return err
	}
	var got T
	if err := handle.Get(ctx, &got); err != nil {
		return err
	}
	return same("the answer", got, want)
}

func same[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s is %v, not %v", what, got, want)
	}
	return nil
}

func status(ctx context.Context, c client.Client, run client.WorkflowRun, want enums.WorkflowExecutionStatus) error {
	described, err := c.DescribeWorkflowExecution(ctx, run.GetID(), run.GetRunID())
	if err != nil {
		return err
	}
	return same("the status", described.WorkflowExecutionInfo.Status, want)
}

func until(what string, body func() (bool, error)) error {
	for deadline := time.Now().Add(10 * time.Second); ; {
		if done, err := body(); err != nil || done {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited 10 s for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func newWorker(c client.Client, queue string) worker.Worker {
	made := worker.New(c, queue, worker.Options{EnableSessionWorker: true})
	for _, run := range []any{
		retries, fails, resumes, beatsUntilCancelled, manyActivities, waitsForOutside, counter, child, parent, cancelsChild,
		again, timers, localActivity, attributes, patchedFlow, signalsAnother, cancelsAnother, inSession,
	} {
		made.RegisterWorkflow(run)
	}
	for _, run := range []any{echo, failTwice, failForGood, resumesFromHeartbeat, beat, completedOutside} {
		made.RegisterActivity(run)
	}
	return made
}

func run(one check) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	began := time.Now()
	err := one.body(ctx)
	took := time.Since(began).Milliseconds()
	if err != nil {
		fmt.Printf("FAIL %s %d %s\n", one.name, took, strings.ReplaceAll(err.Error(), "\n", " | "))
		return false
	}
	fmt.Printf("ok %s %d\n", one.name, took)
	return true
}

func registerAttributes(ctx context.Context, c client.Client) error {
	_, err := c.OperatorService().AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{
		Namespace: "default",
		SearchAttributes: map[string]enums.IndexedValueType{
			"HoldfastKeyword": enums.INDEXED_VALUE_TYPE_KEYWORD, "HoldfastInt": enums.INDEXED_VALUE_TYPE_INT,
		},
	})
	var exists *serviceerror.AlreadyExists
	if errors.As(err, &exists) {
		return nil
	}
	return err
}

func (c *checks) workerStop(first worker.Worker) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		handle, err := c.start(ctx, counter, 1)
		if err != nil {
			return err
		}
		if _, err := c.client.QueryWorkflow(ctx, handle.GetID(), "", "total"); err != nil {
			return err
		}
		began := time.Now()
		first.Stop()
		stopped := time.Since(began)
		second := newWorker(c.client, c.queue)
		if err := second.Start(); err != nil {
			return err
		}
		began = time.Now()
		if _, err := c.client.QueryWorkflow(ctx, handle.GetID(), "", "total"); err != nil {
			return err
		}
		handed := time.Since(began)
		if err := c.client.SignalWorkflow(ctx, handle.GetID(), "", "finish", nil); err != nil {
			return err
		}
		if err := handle.Get(ctx, nil); err != nil {
			return err
		}
		second.Stop()
		fmt.Fprintf(os.Stderr, "worker stopped in %v, the next one answered in %v\n", stopped, handed)
		if stopped > 3*time.Second || handed > 3*time.Second {
			return fmt.Errorf("the worker took %v to stop, the next one %v to answer", stopped, handed)
		}
		return nil
	}
}

func main() {
	address, only := "127.0.0.1:7233", ""
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if len(os.Args) > 2 {
		only = os.Args[2]
	}
	connected, err := client.Dial(client.Options{HostPort: address, Logger: quiet()})
	if err != nil {
		log.Fatal(err)
	}
	defer connected.Close()
	if err := registerAttributes(context.Background(), connected); err != nil {
		log.Fatal(err)
	}
	c := &checks{client: connected, queue: fmt.Sprintf("go-%d", time.Now().UnixNano())}
	first := newWorker(connected, c.queue)
	if err := first.Start(); err != nil {
		log.Fatal(err)
	}
	passed := true
	for _, one := range append(c.all(), check{"worker-stop", c.workerStop(first)}) {
		if strings.Contains(one.name, only) {
			passed = run(one) && passed
		}
	}
	if !passed {
		os.Exit(1)
	}
}
