"""HPACK (RFC 7541): a strict decoder, and an encoder that keeps no state.

Decoding: the fields of a block come out as interned `Field` objects. The same dynamic-table entry is the same
object every time, so a caller can key a cache by identity and skip all validation of a head it has seen.
Strict means: table-size updates only in front, no index 0, no end-of-string symbol, no wrong padding.

Encoding: literals that are never added to the table. Responses are constant bytes then, and the peer needs no
table memory for us. Huffman coding is not used for output: it would save a few bytes and cost a lookup per
byte.
"""

from __future__ import annotations

from typing import Final

# Appendix B lists 257 codes. The code is canonical, so the lengths (one byte each, in hex) determine it.
_CODE_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b0806060605050506"
    "06060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f05060506050606"
    "060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817181816171817171717151617"
    "1617171816151416161717151716161815161717151516151716171714161616171616171a1a1413161716191a1a1a1b1b1a1819"
    "13151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
_END_OF_STRING: Final = 256

_STATIC_FIELDS: Final = (
    ":authority|:method=GET|:method=POST|:path=/|:path=/index.html|:scheme=http|:scheme=https|:status=200|"
    ":status=204|:status=206|:status=304|:status=400|:status=404|:status=500|accept-charset|"
    "accept-encoding=gzip, deflate|accept-language|accept-ranges|accept|access-control-allow-origin|age|"
    "allow|authorization|cache-control|content-disposition|content-encoding|content-language|content-length|"
    "content-location|content-range|content-type|cookie|date|etag|expect|expires|from|host|if-match|"
    "if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|link|location|max-forwards|"
    "proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|server|set-cookie|"
    "strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"
)

TABLE_BYTES_MAX: Final = 4096  # the protocol's default; we never announce another
_FIELD_OVERHEAD: Final = 32  # what RFC 7541 section 4.1 adds to each field's size


class HpackError(ValueError):
    """The block is not valid HPACK; the table can no longer be trusted, so the connection must end."""


def _build_huffman() -> tuple[list[list[tuple[int, bytes] | None]], frozenset[int]]:
    """One row per tree node, one cell per next byte: (node after it, bytes it completed), None =
    forbidden.
    """
    tree: list[list[int]] = [[0, 0]]  # 0 = not yet there; > 0 a node; < 0 the leaf of symbol ~value
    code = 0
    previous = 5
    for symbol in sorted(range(257), key=lambda s: (_CODE_LENGTHS[s], s)):
        length = _CODE_LENGTHS[symbol]
        code <<= length - previous
        previous = length
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not tree[node][bit]:
                tree.append([0, 0])
                tree[node][bit] = len(tree) - 1
            node = tree[node][bit]
        tree[node][code & 1] = ~symbol
        code += 1
    padding = set()  # a string may end inside a code only after at most seven one bits
    node = 0
    for _ in range(8):
        padding.add(node)
        node = tree[node][1]
    return [[_walk_byte(tree, start, byte) for byte in range(256)] for start in range(len(tree))], frozenset(
        padding
    )


def _walk_byte(tree: list[list[int]], node: int, byte: int) -> tuple[int, bytes] | None:
    out = b""
    for shift in range(7, -1, -1):
        node = tree[node][byte >> shift & 1]
        if node < 0:
            if ~node == _END_OF_STRING:
                return None
            out += bytes((~node,))
            node = 0
    return node, out


_HUFFMAN, _HUFFMAN_ENDS = _build_huffman()


def huffman_decode(data: bytes) -> bytes:
    """The string behind a Huffman-coded one."""
    node = 0
    out = []
    table = _HUFFMAN
    for byte in data:
        cell = table[node][byte]
        if cell is None:
            raise HpackError("end-of-string symbol in a Huffman string")
        node, piece = cell
        out.append(piece)
    if node not in _HUFFMAN_ENDS:
        raise HpackError("bad Huffman padding")
    return b"".join(out)


class Field:
    """One header field. `size` is what RFC 7541 counts it as."""

    __slots__ = ("name", "size", "value")

    def __init__(self, name: bytes, value: bytes) -> None:
        self.name = name
        self.value = value
        self.size = len(name) + len(value) + _FIELD_OVERHEAD


_STATIC: Final = (
    Field(b"", b""),  # index 0 is not used
    *(
        Field(
            *(
                part.encode()
                for part in ((*text.split("=", 1), "") if "=" not in text else text.split("=", 1))
            )
        )
        for text in _STATIC_FIELDS.split("|")
    ),
)
_STATIC_END: Final = len(_STATIC)
assert _STATIC_END == 62, "RFC 7541 Appendix A has 61 entries"


def _integer(block: bytes, position: int, prefix: int) -> tuple[int, int]:
    """An integer whose prefix bits were all ones: (value, position after it)."""
    value = prefix
    shift = 0
    while True:
        position += 1
        byte = block[position]
        value += (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position + 1
        if shift > 21:
            raise HpackError("integer too long")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    first = block[position]
    length = first & 127
    if length == 127:
        length, position = _integer(block, position, 127)
    else:
        position += 1
    end = position + length
    if end > len(block):
        raise HpackError("truncated string")
    text = block[position:end]
    return (huffman_decode(text) if first & 128 else text), end


class Decoder:
    """One connection's decoding state."""

    __slots__ = ("_entries", "_list_bytes_max", "_table_bytes", "_table_bytes_max", "changed", "oversized")

    def __init__(self, list_bytes_max: int) -> None:
        self._entries: list[Field] = []  # the dynamic table, newest last
        self._table_bytes = 0
        self._table_bytes_max = TABLE_BYTES_MAX
        self._list_bytes_max = list_bytes_max
        self.changed = False  # whether the last block touched the dynamic table
        self.oversized = (
            False  # whether the last block's fields were more than list_bytes_max: they are cut off
        )

    def decode(self, block: bytes) -> list[Field]:
        """The block's fields. HpackError means the connection cannot go on."""
        try:
            return self._decode(block)
        except IndexError:
            raise HpackError("truncated block") from None

    def _decode(self, block: bytes) -> list[Field]:
        fields: list[Field] = []
        position = total = 0
        end = len(block)
        self.changed = self.oversized = False
        entries = self._entries
        newest = len(entries) + _STATIC_END - 1  # position in `entries` of index i is newest - i
        while position < end:
            first = block[position]
            if first > 127:  # indexed
                if first < 255:
                    index = first & 127
                    position += 1
                else:
                    index, position = _integer(block, position, 127)
                if 0 < index < _STATIC_END:
                    field = _STATIC[index]
                else:
                    offset = newest - index
                    if offset < 0 or not index:
                        raise HpackError("bad index")
                    field = entries[offset]
            elif 32 <= first < 64:
                if fields:
                    raise HpackError("table size update after a field")
                position = self._resize(block, position)
                newest = len(entries) + _STATIC_END - 1
                continue
            else:
                field, position = self._literal(block, position)
                if first & 64:
                    self._insert(field)
                    newest = len(entries) + _STATIC_END - 1
            total += field.size
            if total > self._list_bytes_max:
                # Decoding goes on, so that the table stays right and only this request suffers. The work is
                # bounded by the block's length, the memory by not keeping what is decoded.
                self.oversized = True
            else:
                fields.append(field)
        return fields

    def _literal(self, block: bytes, position: int) -> tuple[Field, int]:
        prefix = 63 if block[position] & 64 else 15
        index = block[position] & prefix
        if index == prefix:
            index, position = _integer(block, position, prefix)
        else:
            position += 1
        if index:
            name = self._at(index).name
        else:
            name, position = _string(block, position)
        value, position = _string(block, position)
        return Field(name, value), position

    def _at(self, index: int) -> Field:
        if index < _STATIC_END:
            return _STATIC[index]
        offset = len(self._entries) + _STATIC_END - 1 - index
        if offset < 0:
            raise HpackError("bad index")
        return self._entries[offset]

    def _insert(self, field: Field) -> None:
        self.changed = True
        self._evict(self._table_bytes_max - field.size)
        if field.size <= self._table_bytes_max:
            self._entries.append(field)
            self._table_bytes += field.size

    def _resize(self, block: bytes, position: int) -> int:
        size = block[position] & 31
        if size == 31:
            size, position = _integer(block, position, 31)
        else:
            position += 1
        if size > TABLE_BYTES_MAX:
            raise HpackError("table larger than announced")
        self.changed = True
        self._table_bytes_max = size
        self._evict(size)
        return position

    def _evict(self, room: int) -> None:
        """Drop the oldest entries until the table is no larger than `room`."""
        entries = self._entries
        count = 0
        while self._table_bytes > room and count < len(entries):
            self._table_bytes -= entries[count].size
            count += 1
        if count:
            del entries[:count]


def _encode_length(length: int) -> bytes:
    if length < 127:
        return bytes((length,))
    out = bytearray((127,))
    length -= 127
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    out.append(length)
    return bytes(out)


def literal(name: bytes, value: bytes) -> bytes:
    """One field as a literal that no table remembers."""
    return b"\x00" + _encode_length(len(name)) + name + _encode_length(len(value)) + value
