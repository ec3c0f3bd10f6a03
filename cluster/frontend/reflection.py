"""grpc.reflection, v1 and v1alpha: lets grpcurl and its like list and describe what this server speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError

from cluster.frontend import schema
from cluster.frontend.contract import Call, Handler
from history_store.engine.errors import Code, ServiceError, invalid

_Found = TypeVar("_Found")


class Reflection:
    """Answers from the descriptor pools: the default one (Temporal's API) and that of gRPC's own services."""

    def __init__(self, services: Iterable[str]) -> None:
        """`services` by full name, without the reflection services themselves."""
        own = (f"grpc.reflection.{version}.ServerReflection" for version in schema.REFLECTION_VERSIONS)
        self._services = sorted({*services, *own})
        self._pools: Final = (schema.POOL, descriptor_pool.Default())  # type: ignore[no-untyped-call,unused-ignore]

    @property
    def methods(self) -> dict[str, Handler]:
        """For a front's `methods`."""
        return {
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": partial(self._info, version)
            for version in schema.REFLECTION_VERSIONS
        }

    @property
    def streaming(self) -> frozenset[str]:
        """For a front's `streaming`."""
        return frozenset(self.methods)

    def _info(self, version: str, call: Call) -> None:
        """One stream: a response for every request, in order."""
        package = f"grpc.reflection.{version}"
        request_class = schema.message_class(f"{package}.ServerReflectionRequest")
        response_class = schema.message_class(f"{package}.ServerReflectionResponse")
        sent: set[str] = set()  # names of files the client has from this stream

        def answer(message: bytes | None) -> None:
            if message is None:
                call.finish(b"")
                return
            try:
                request = request_class.FromString(message)
            except DecodeError as error:
                raise invalid(f"ServerReflectionRequest: {error}") from None
            response = response_class(valid_host=request.host, original_request=request)
            try:
                self._fill(request, response, sent)
            except ServiceError as error:
                response.error_response.error_code = int(error.code)
                response.error_response.error_message = error.message
            call.write(response.SerializeToString())

        call.on_message = answer
        answer(call.request)

    def _fill(self, request: Any, response: Any, sent: set[str]) -> None:
        which = request.WhichOneof("message_request")
        if which == "list_services":
            for name in self._services:
                response.list_services_response.service.add(name=name)
        elif which == "all_extension_numbers_of_type":
            name = request.all_extension_numbers_of_type
            numbers = self._find(f"type {name}", lambda pool: _extension_numbers(pool, name))
            response.all_extension_numbers_response.base_type_name = name
            response.all_extension_numbers_response.extension_number.extend(numbers)
        elif which is None:
            raise ServiceError(Code.INVALID_ARGUMENT, "the request asks for nothing")
        else:
            file = self._file(which, request)
            response.file_descriptor_response.file_descriptor_proto.extend(_closure(file, sent))

    def _file(self, which: str, request: Any) -> FileDescriptor:
        if which == "file_by_filename":
            name = request.file_by_filename
            return self._find(f"file {name}", lambda pool: _file_by_name(pool, name))
        if which == "file_containing_symbol":
            symbol = request.file_containing_symbol
            return self._find(f"symbol {symbol}", lambda pool: _file_of_symbol(pool, symbol))
        wanted = request.file_containing_extension
        parent, number = wanted.containing_type, wanted.extension_number
        what = f"extension {number} of {parent}"
        return self._find(what, lambda pool: _file_of_extension(pool, parent, number))

    def _find(self, what: str, look: Callable[[Any], _Found]) -> _Found:
        for pool in self._pools:
            try:
                return look(pool)
            except KeyError:
                continue
        raise ServiceError(Code.NOT_FOUND, f"{what} is not known here")


def _file_by_name(pool: Any, name: str) -> FileDescriptor:
    file: FileDescriptor = pool.FindFileByName(name)
    return file


def _file_of_extension(pool: Any, parent: str, number: int) -> FileDescriptor:
    file: FileDescriptor = pool.FindExtensionByNumber(pool.FindMessageTypeByName(parent), number).file
    return file


def _file_of_symbol(pool: Any, symbol: str) -> FileDescriptor:
    file: FileDescriptor
    try:
        file = pool.FindFileContainingSymbol(symbol)
    except KeyError:
        # The pool does not find methods and fields by itself: their parent is in the same file.
        parent, _, name = symbol.rpartition(".")
        file = pool.FindFileContainingSymbol(parent)
        service = file.services_by_name.get(parent.rpartition(".")[2])
        names = (
            service.methods_by_name
            if service is not None
            else pool.FindMessageTypeByName(parent).fields_by_name
        )
        if name not in names:
            raise
    return file


def _extension_numbers(pool: Any, name: str) -> list[int]:
    return sorted(extension.number for extension in pool.FindAllExtensions(pool.FindMessageTypeByName(name)))


def _closure(file: FileDescriptor, sent: set[str]) -> list[bytes]:
    """The file, and every file it needs that was not sent before."""
    out: list[bytes] = []
    sent.discard(file.name)  # who asks again gets it again

    def visit(current: FileDescriptor) -> None:
        if current.name in sent:
            return
        sent.add(current.name)
        proto = descriptor_pb2.FileDescriptorProto()
        current.CopyToProto(proto)  # type: ignore[no-untyped-call,unused-ignore]
        out.append(proto.SerializeToString())
        for dependency in current.dependencies:
            visit(dependency)

    visit(file)
    return out
