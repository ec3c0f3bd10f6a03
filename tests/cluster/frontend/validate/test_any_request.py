"""Whatever a client sends, a check returns or raises `ServiceError`: requests with every field at random."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from temporalio.api.command.v1 import Command
from temporalio.api.operatorservice.v1 import service_pb2 as operator_service
from temporalio.api.workflowservice.v1 import service_pb2 as workflow_service

from cluster.frontend.validate import CHECKS, Limits
from history_store.engine import command_rules
from history_store.engine.errors import ServiceError

ROUNDS = 250
DEPTH_MAX = 5
UUID = "0190e1f4-9c5e-7d5a-8b1a-1234567890ab"
TEXTS = [
    "",
    "a",
    "x" * 1001,
    "é" * 600,
    "/_sys/q/1",
    "http://[",
    "* * * * *",
]
NUMBERS = [0, 1, 2, 5, 99]
SIGNED = [*NUMBERS, -1, 10**9, 2**31 - 1]


def requests() -> dict[str, Any]:
    """The request class of every method of both services."""
    services = (
        operator_service.DESCRIPTOR.services_by_name["OperatorService"],
        workflow_service.DESCRIPTOR.services_by_name["WorkflowService"],
    )
    return {
        method.name: GetMessageClass(method.input_type) for service in services for method in service.methods
    }


def scalar(field: Any, rng: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = rng.choice(TEXTS) if rng.random() < 0.2 else UUID  # good for most fields
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice([0.0, 0.5, 2.0, 2.0, 2.0, -1.0, float("nan"), float("inf")])
        case FieldDescriptor.CPPTYPE_INT32:
            return rng.choice(SIGNED) if rng.random() < 0.3 else 2
        case FieldDescriptor.CPPTYPE_INT64:
            return rng.choice([*SIGNED, 2**62, -(2**62)]) if rng.random() < 0.2 else 2
        case _:
            return rng.choice(NUMBERS)


def fill(message: Any, rng: random.Random, depth: int = 0) -> None:
    """Give most of the fields some value, sometimes a strange one."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.15 or depth > DEPTH_MAX:
            continue
        value = getattr(message, field.name)
        entry = field.message_type is not None and field.message_type.GetOptions().map_entry
        if entry:
            item = field.message_type.fields_by_name["value"]
            if item.message_type is not None:
                fill(value["k"], rng, depth + 1)
            else:
                key_field = field.message_type.fields_by_name["key"]
                value[scalar(key_field, rng)] = scalar(item, rng)
        elif field.is_repeated:
            for _ in range(rng.randrange(3)):
                if field.message_type is not None:
                    fill(value.add(), rng, depth + 1)
                else:
                    value.append(scalar(field, rng))
        elif field.message_type is not None:
            value.SetInParent()
            fill(value, rng, depth + 1)
        else:
            setattr(message, field.name, scalar(field, rng))


@pytest.mark.parametrize("method", sorted(CHECKS))
def test_only_service_errors(method: str) -> None:
    kind = requests()[method]
    for seed in range(ROUNDS):
        request = kind()
        fill(request, random.Random(f"{method}-{seed}"))
        try:
            CHECKS[method](request, Limits())
            said = "nothing"
        except ServiceError as error:
            said = error.message
        except Exception as error:
            raise AssertionError(f"seed {method}-{seed}: {request}") from error
        assert said


def rule(command: Command) -> None:
    limits = Limits()
    match command.WhichOneof("attributes"):
        case "schedule_activity_task_command_attributes":
            command_rules.check_schedule_activity(
                command.schedule_activity_task_command_attributes, limits, 10**9, "q"
            )
        case "start_timer_command_attributes":
            command_rules.check_start_timer(command.start_timer_command_attributes, limits)
        case "record_marker_command_attributes":
            command_rules.check_record_marker(command.record_marker_command_attributes, limits)
        case "continue_as_new_workflow_execution_command_attributes":
            command_rules.check_continue_as_new(
                command.continue_as_new_workflow_execution_command_attributes, limits, "T", "q"
            )
        case "start_child_workflow_execution_command_attributes":
            command_rules.check_start_child(
                command.start_child_workflow_execution_command_attributes, limits, "q"
            )
        case "signal_external_workflow_execution_command_attributes":
            command_rules.check_signal_external(
                command.signal_external_workflow_execution_command_attributes, limits
            )
        case "upsert_workflow_search_attributes_command_attributes":
            command_rules.check_upsert_search_attributes(
                command.upsert_workflow_search_attributes_command_attributes, limits
            )
        case "modify_workflow_properties_command_attributes":
            command_rules.check_modify_properties(
                command.modify_workflow_properties_command_attributes, limits
            )
        case _:
            pass


def test_only_bad_commands() -> None:
    for seed in range(1500):
        command = Command()
        fill(command, random.Random(f"command-{seed}"))
        try:
            rule(command)
            said = "nothing"
        except command_rules.BadCommand as error:
            said = error.text
        except Exception as error:
            raise AssertionError(f"seed command-{seed}: {command}") from error
        assert said
