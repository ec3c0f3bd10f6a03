"""The messages of gRPC's own services, health and reflection, without their distributions.

They are described here in code and live in a pool of their own: the default pool belongs to whoever imports
grpcio-health-checking or grpcio-reflection in the same process, and takes a file name only once.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto

POOL: Final = descriptor_pool.DescriptorPool()

# One line a field: name, number, type; "*" repeats it, "|" puts it into the message's only oneof.
_TYPES: Final = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
}


def _add_message(
    parent: Any, package: str, name: str, fields: list[tuple[str, int, str]], oneof: str = ""
) -> None:
    message = parent.add()
    message.name = name
    if oneof:
        message.oneof_decl.add().name = oneof
    for field_name, number, kind in fields:
        field = message.field.add()
        field.name, field.number = field_name, number
        field.label = _Field.LABEL_REPEATED if kind[0] == "*" else _Field.LABEL_OPTIONAL
        if kind[0] == "|":
            field.oneof_index = 0
        base = kind.lstrip("*|")
        if base in _TYPES:
            field.type = _TYPES[base]
        else:
            field.type = _Field.TYPE_ENUM if base.startswith("enum ") else _Field.TYPE_MESSAGE
            field.type_name = f".{package}.{base.removeprefix('enum ')}"


def _add_method(
    service: Any, package: str, name: str, request: str, response: str, *, streams: tuple[bool, bool]
) -> None:
    method = service.method.add()
    method.name = name
    method.input_type, method.output_type = f".{package}.{request}", f".{package}.{response}"
    method.client_streaming, method.server_streaming = streams


def _health_file() -> descriptor_pb2.FileDescriptorProto:
    package = "grpc.health.v1"
    file = descriptor_pb2.FileDescriptorProto(
        name="grpc/health/v1/health.proto", package=package, syntax="proto3"
    )
    _add_message(file.message_type, package, "HealthCheckRequest", [("service", 1, "string")])
    _add_message(
        file.message_type,
        package,
        "HealthCheckResponse",
        [("status", 1, "enum HealthCheckResponse.ServingStatus")],
    )
    status = file.message_type[1].enum_type.add()
    status.name = "ServingStatus"
    for number, name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
        status.value.add(name=name, number=number)
    service = file.service.add()
    service.name = "Health"
    for name, streams in (("Check", (False, False)), ("Watch", (False, True))):
        _add_method(service, package, name, "HealthCheckRequest", "HealthCheckResponse", streams=streams)
    return file


def _reflection_file(version: str) -> descriptor_pb2.FileDescriptorProto:
    package = f"grpc.reflection.{version}"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"grpc/reflection/{version}/reflection.proto", package=package, syntax="proto3"
    )
    messages: dict[str, tuple[str, list[tuple[str, int, str]]]] = {
        "ServerReflectionRequest": (
            "message_request",
            [
                ("host", 1, "string"),
                ("file_by_filename", 3, "|string"),
                ("file_containing_symbol", 4, "|string"),
                ("file_containing_extension", 5, "|ExtensionRequest"),
                ("all_extension_numbers_of_type", 6, "|string"),
                ("list_services", 7, "|string"),
            ],
        ),
        "ExtensionRequest": ("", [("containing_type", 1, "string"), ("extension_number", 2, "int32")]),
        "ServerReflectionResponse": (
            "message_response",
            [
                ("valid_host", 1, "string"),
                ("original_request", 2, "ServerReflectionRequest"),
                ("file_descriptor_response", 4, "|FileDescriptorResponse"),
                ("all_extension_numbers_response", 5, "|ExtensionNumberResponse"),
                ("list_services_response", 6, "|ListServiceResponse"),
                ("error_response", 7, "|ErrorResponse"),
            ],
        ),
        "FileDescriptorResponse": ("", [("file_descriptor_proto", 1, "*bytes")]),
        "ExtensionNumberResponse": ("", [("base_type_name", 1, "string"), ("extension_number", 2, "*int32")]),
        "ListServiceResponse": ("", [("service", 1, "*ServiceResponse")]),
        "ServiceResponse": ("", [("name", 1, "string")]),
        "ErrorResponse": ("", [("error_code", 1, "int32"), ("error_message", 2, "string")]),
    }
    for name, (oneof, fields) in messages.items():
        _add_message(file.message_type, package, name, fields, oneof)
    service = file.service.add()
    service.name = "ServerReflection"
    _add_method(
        service,
        package,
        "ServerReflectionInfo",
        "ServerReflectionRequest",
        "ServerReflectionResponse",
        streams=(True, True),
    )
    return file


REFLECTION_VERSIONS: Final = ("v1", "v1alpha")
for _file in (_health_file(), *map(_reflection_file, REFLECTION_VERSIONS)):
    POOL.Add(_file)  # type: ignore[no-untyped-call,unused-ignore]


def message_class(full_name: str) -> Any:
    """The class of a message described here. Its fields are known at run time only, hence Any."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_name))
