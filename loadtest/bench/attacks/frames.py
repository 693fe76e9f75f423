"""HTTP/2 by hand: frames and field blocks that a library would refuse to write. In: what a frame says. Out: its bytes.
The other way only as far as an attacker looks: kind, flags, stream, payload. Nothing here opens a socket.
"""

import struct

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, _, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INITIAL_WINDOW_SIZE = 4


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def settings(*pairs):
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in pairs))


def integer(value, bits, first):
    """HPACK's integers, RFC 7541 section 5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = [first | most], value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def text(value):
    return integer(len(value), 7, 0) + value


def field(name, value, kept=False):
    """A field with a new name; `kept`: it goes into the dynamic table, where it is then number 62."""
    return (b"\x40" if kept else b"\x00") + text(name) + text(value)


INDEXED_62 = b"\xbe"


def request(path, method=b"GET"):
    """The pseudo-fields of a request to localhost."""
    verb = {b"GET": b"\x82", b"POST": b"\x83"}[method]
    return verb + b"\x87" + b"\x04" + text(path) + b"\x01" + text(b"localhost")


def get(stream, path, extra=b""):
    """In as many frames as the largest that everybody takes makes necessary."""
    block = request(path) + extra
    pieces = [block[at:at + 16384] for at in range(0, len(block), 16384)]
    kinds = [(HEADERS, END_STREAM)] + [(CONTINUATION, 0)] * (len(pieces) - 1)
    kinds[-1] = (kinds[-1][0], kinds[-1][1] | END_HEADERS)
    return b"".join(frame(kind, flags, stream, piece) for (kind, flags), piece in zip(kinds, pieces))


def post(stream, path):
    return frame(HEADERS, END_HEADERS, stream, request(path, b"POST"))


class Reader:
    """Cuts what was received into frames."""

    def __init__(self):
        self._bytes = bytearray()

    def take(self, received):
        self._bytes += received
        at, found = 0, []
        while len(self._bytes) - at >= 9:
            head, flags, stream = struct.unpack_from(">IBI", self._bytes, at)
            length = head >> 8
            if len(self._bytes) - at < 9 + length:
                break
            found.append((head & 255, flags, stream & 0x7FFFFFFF, bytes(self._bytes[at + 9:at + 9 + min(length, 64)])))
            at += 9 + length
        del self._bytes[:at]
        return found
