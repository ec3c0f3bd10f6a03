"""Scenes: how runs begin."""

from __future__ import annotations

from temporalio.api.enums.v1 import workflow_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from tests.cluster.hosting.play import done, failed
from tests.history_store.engine.story import Story, start

REUSE = ("ALLOW_DUPLICATE", "ALLOW_DUPLICATE_FAILED_ONLY", "REJECT_DUPLICATE", "TERMINATE_IF_RUNNING")
CONFLICT = ("UNSPECIFIED", "FAIL", "USE_EXISTING", "TERMINATE_EXISTING")


async def reuse_and_conflict_policies(story: Story) -> None:
    """A start when the id is known: each reuse policy, conflict policy, and state of the last run."""
    play = story.play
    for state in ("running", "completed", "failed", "terminated"):
        for reuse in REUSE:
            for conflict in CONFLICT:
                name = f"{state}-{reuse}-{conflict}"
                first = await play.start(name, task_queue={"name": name})
                if state == "terminated":
                    await play.terminate(name)
                elif state != "running":
                    await play.next(done() if state == "completed" else failed(), queue=name)
                request = start(
                    name,
                    "again",
                    workflow_id_reuse_policy=workflow_pb2.WorkflowIdReusePolicy.Value(
                        f"WORKFLOW_ID_REUSE_POLICY_{reuse}"
                    ),
                    workflow_id_conflict_policy=workflow_pb2.WorkflowIdConflictPolicy.Value(
                        f"WORKFLOW_ID_CONFLICT_POLICY_{conflict}"
                    ),
                )
                call = play.begin(request)
                await play.settle()
                error = call.answer.exception()
                if error is not None:
                    result = str(error).partition(":")[0]
                    result = f"refused ({result})"
                else:
                    response = wire.StartWorkflowExecutionResponse.FromString(call.answer.result())
                    result = "joins" if response.run_id == first else "starts"
                    assert response.started == (result == "starts")
                    old = (await play.describe(name, first)).workflow_execution_info.status
                    if state == "running" and result == "starts":
                        result += (
                            f", the old one is {workflow_pb2.WorkflowExecutionStatus.Name(old)[26:].lower()}"
                        )
                story.say(f"{state:10} {reuse:28} {conflict:18} {result}")


async def the_same_request_twice(story: Story) -> None:
    """A request id makes a start once, whatever has become of the run."""
    play = story.play
    for number in range(2):
        await story.ask(start(request_id="r", identity=str(number)))
    await play.next(done())
    await story.ask(start(request_id="r"))
    await story.tell()
    await story.ask(start(request_id="other"))
    await story.tell()


async def terminate_existing(story: Story) -> None:
    """The new run takes the id in the same step that ends the old one, whose workflow task a worker holds."""
    play = story.play
    first = await play.start("w")
    await play.poll()
    await play.signal()
    await story.ask(start(request_id="again", workflow_id_conflict_policy=3))  # type: ignore[arg-type]
    await story.tell("w", first)
    await story.tell()


async def start_delay(story: Story) -> None:
    """Nothing is scheduled until the delay is over; a signal does not end it."""
    play = story.play
    await play.call(start(workflow_start_delay={"seconds": 30}))
    await play.signal()
    await story.tell()
    await play.advance(30)
    await story.tell()


async def cancel_during_the_delay(story: Story) -> None:
    """A cancel request is recorded and waits for the first task as well."""
    play = story.play
    await play.call(start(workflow_start_delay={"seconds": 30}))
    await play.cancel()
    await play.cancel()
    await story.tell()
    await play.advance(30)
    await story.tell()


async def signal_with_start(story: Story) -> None:
    """The signal comes before the first task; the second finds the run; a repeated one changes nothing."""
    play = story.play

    def request(request_id: str, **fields: object) -> wire.SignalWithStartWorkflowExecutionRequest:
        made = wire.SignalWithStartWorkflowExecutionRequest(
            namespace="default",
            workflow_id="w",
            request_id=request_id,
            signal_name=f"s-{request_id}",
            **fields,  # type: ignore[arg-type]
        )
        made.workflow_type.name = "W"
        made.task_queue.name = "q"
        return made

    await story.ask(request("1"))
    await story.tell()
    await story.ask(request("1"))
    await story.ask(request("2"))
    await story.ask(request("2"))
    await story.tell()
    await story.ask(request("3", workflow_id_conflict_policy=3))
    await story.tell()
    await play.next(done())
    await story.ask(request("4", workflow_id_reuse_policy=3))
    await story.ask(request("5", workflow_start_delay={"seconds": 20}))
    await story.tell()
    await play.advance(20)
    await story.tell()


async def time_outs(story: Story) -> None:
    """A run time-out ends the run; an execution time-out ends the chain, retries or not."""
    play = story.play
    await play.call(start("run", workflow_run_timeout={"seconds": 10}))
    await play.poll()
    await play.signal("run")
    await play.advance(10)
    await story.tell("run")
    await play.call(
        start("chain", workflow_run_timeout={"seconds": 10}, workflow_execution_timeout={"seconds": 15},
              retry_policy={"initial_interval": {"seconds": 2}})
    )  # fmt: skip
    first = (await play.describe("chain")).workflow_execution_info.execution.run_id
    await play.advance(10)
    await story.tell("chain", first)
    await story.tell("chain")
    await play.advance(5)
    await story.tell("chain")
