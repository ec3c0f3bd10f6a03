"""Scenes: runs that know each other."""

from __future__ import annotations

from tests.cluster.hosting.play import child, command, done, execution, failed, payloads
from tests.history_store.engine.story import Story, terminate


async def a_childs_life(story: Story) -> None:
    """Completed, failed, cancelled, terminated, timed out."""
    play = story.play
    names = ("completes", "fails", "cancels", "dies", "late")
    await play.first(
        *(
            child(
                name,
                task_queue={"name": name},
                workflow_run_timeout={"seconds": 50 if name == "late" else 500},
            )
            for name in names
        )
    )
    await play.next(done("fine"), queue="completes")
    await play.next(failed("oh"), queue="fails")
    await play.next(command("CANCEL_WORKFLOW_EXECUTION", details=payloads("left")), queue="cancels")
    await play.terminate("dies")
    await play.advance(50)
    await story.tell()
    await story.tell("completes")


async def a_child_whose_id_is_taken(story: Story) -> None:
    """The parent hears that it could not be started; an id that was used before may be used again."""
    play = story.play
    await play.start("child")
    await play.start("old", task_queue={"name": "old"})
    await play.next(done(), queue="old")
    await play.start("w", task_queue={"name": "p"})
    await play.next(child("child"), child("old"), child("old", workflow_id_reuse_policy=3), queue="p")
    await story.tell()


async def a_childs_chain(story: Story) -> None:
    """A child that continues as new, and one that is retried, end once for their parent."""
    play = story.play
    await play.first(
        child("new"), child("again", retry_policy={"initial_interval": {"seconds": 1}, "maximum_attempts": 2})
    )
    for _ in range(2):
        task = await play.poll("cq")
        if task.workflow_execution.workflow_id == "new":
            await play.complete(task.task_token, command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION"))
        else:
            await play.complete(task.task_token, failed("once"))
    await play.advance(1)
    for _ in range(2):
        await play.next(done("at last"), queue="cq")
    await story.tell()


async def parent_close_policies(story: Story) -> None:
    """The parent ends: its children are terminated, asked to cancel, or left alone."""
    play = story.play
    names = {"terminate": 1, "abandon": 2, "request-cancel": 3}
    await play.first(*(child(name, parent_close_policy=policy) for name, policy in names.items()))
    await play.next(done())
    await play.settle()
    for name in names:
        await story.tell(name)


async def a_parent_that_is_followed(story: Story) -> None:
    """Continued as new: the policies count all the same, since the children belong to the run."""
    play = story.play
    await play.first(child("kid"))
    await play.next(command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION"))
    await play.settle()
    await story.tell("kid")


async def signals_to_others(story: Story) -> None:
    """To a run that is there, to none, to a closed one, to a child only, twice the same."""
    play = story.play
    await play.start("there", task_queue={"name": "t"})
    await play.start("closed", task_queue={"name": "c"})
    await play.next(done(), queue="c")
    await play.first(
        command(
            "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution=execution("there"), signal_name="a", control="c"
        ),
        command("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution=execution("nowhere"), signal_name="b"),
        command("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution=execution("closed"), signal_name="c"),
        command(
            "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION",
            execution=execution("there"),
            signal_name="d",
            child_workflow_only=True,
        ),
        command("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution=execution("w"), signal_name="to myself"),
    )
    await story.tell()
    await story.tell("there")


async def cancels_of_others(story: Story) -> None:
    """Of a run that is there, of none, of a closed one, twice."""
    play = story.play
    await play.start("there", task_queue={"name": "t"})
    await play.start("closed", task_queue={"name": "c"})
    await play.next(done(), queue="c")
    await play.first(
        *(
            command("REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION", workflow_id=name, reason="why")
            for name in ("there", "nowhere", "closed", "there")
        )
    )
    await story.tell()
    await story.tell("there")


async def a_child_ends_while_its_parent_is_busy(story: Story) -> None:
    """Started and closed are buffered together: the closing event learns the started one's id."""
    play = story.play
    await play.start("w")
    task = await play.poll()
    await play.complete(
        task.task_token, child(), force_create_new_workflow_task=True, return_new_workflow_task=True
    )
    await play.settle()
    await play.next(done("quick"), queue="cq")
    await play.advance(10)
    await story.tell()
    await story.ask(terminate())
