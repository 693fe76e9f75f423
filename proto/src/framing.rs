//! The frame of HTTP/1.1 requests, read more strictly than any HTTP library does it (RFC 9112): where two readers could see
//! different messages in the same bytes, nobody gets to see them. In: the bytes of a connection, as they come. Out: how
//! many of them belong to well-formed requests, and why no more do. It keeps nothing of what it reads but a few words, never
//! allocates, and does not look at what a request means: its host, its path, its fields are the next reader's business.
//!
//! Refused, besides what no reader takes: lines that end with a bare LF, CR or NUL anywhere in a head, folded lines, a space
//! before a colon, more than one `Content-Length` (even the same one twice), any sign or comma in it, `Content-Length`
//! beside `Transfer-Encoding`, any coding but `chunked`, chunked HTTP/1.0, a fragment in the target, chunk sizes with
//! anything but hexadecimal digits, extensions without end, and trailers that would change the frame.

mod body;
mod field;
mod target;

use field::{Field, Frame};
use target::Target;

/// Longest method; the longest registered one has 17 bytes.
const METHOD: usize = 32;
/// The end of most request lines.
const NEWEST: &[u8] = b"HTTP/1.1\r\n";
/// Bytes of all trailer fields.
const TRAILERS: usize = 8 * 1024;

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the request line.
    pub line: usize,
    /// Bytes of the whole head, its request line included.
    pub head: usize,
    pub fields: usize,
}

/// Why the bytes that follow are no request, or not the rest of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request line is none (RFC 9112, section 3).
    Line,
    /// Longer than `Limits::line`.
    LineTooLong,
    /// Neither HTTP/1.1 nor HTTP/1.0.
    Version,
    /// A line that is no field, in a head (RFC 9112, section 5).
    Field,
    HeadTooLarge,
    TooManyFields,
    /// Where the message ends is not said, or said twice (RFC 9112, section 6).
    Frame,
    /// In a chunked body (RFC 9112, section 7.1).
    Chunk,
    /// In the trailers, or too many of them (RFC 9110, section 6.5).
    Trailer,
}

/// What came after the bytes that were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: all were taken.
    All,
    /// The bytes after a request for another protocol, or CONNECT: what they are depends on the answer.
    Switch,
    /// The bytes after a request that wants to be the connection's last: they belong to nobody.
    Last,
    Fault(Fault),
}

/// Where the bytes taken so far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Between,
    Head,
    Body,
}

/// Reads one connection's requests.
#[derive(Clone, Debug)]
pub struct Framing {
    limits: Limits,
    state: State,
    /// Bytes of this head, or of these trailers.
    size: usize,
    /// Heads that were whole.
    requests: u32,
    fields: usize,
    target: Target,
    field: Field,
    frame: Frame,
    /// Bytes of extensions of this body, and of this chunk.
    extensions: (u32, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a request line; one empty line may be skipped (RFC 9112, section 2.2).
    Start {
        skipped: bool,
    },
    StartLf,
    Method,
    Target,
    /// So many bytes of `HTTP/1.x`.
    Version(u8),
    LineCr,
    LineLf,
    /// The first byte of a field's line, or of the empty one.
    Field,
    Name,
    Value,
    ValueLf,
    LastLf,
    Body(u64),
    /// So many digits of a chunk's size.
    Size(u8, u64),
    Extension(u64),
    SizeLf(u64),
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    Switch,
    Last,
    Fault(Fault),
}

impl Framing {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Start { skipped: false },
            size: 0,
            requests: 0,
            fields: 0,
            target: Target::default(),
            field: Field::default(),
            frame: Frame::default(),
            extensions: (0, 0),
        }
    }

    /// The next bytes of the connection. Returns how many of them the next reader may have, and what the others are. After
    /// a fault it takes no more. After [`Seen::Switch`] it takes no more before [`Self::resume`].
    pub fn read(&mut self, bytes: &[u8]) -> (usize, Seen) {
        let mut at = 0;
        while at < bytes.len() {
            match self.step(&bytes[at..]) {
                Ok(0) => break,
                Ok(taken) => at += taken,
                Err(fault) => self.state = State::Fault(fault),
            }
        }
        let seen = match self.state {
            State::Fault(fault) => Seen::Fault(fault),
            State::Switch => Seen::Switch,
            State::Last => Seen::Last,
            _ => Seen::All,
        };
        (at, seen)
    }

    /// The other protocol was not agreed on: requests follow, if any.
    pub fn resume(&mut self) -> Seen {
        if self.state == State::Switch {
            self.state = self.after_message();
        }
        self.read(&[]).1
    }

    /// How many heads have been passed on to their ends, modulo 2^32.
    pub fn requests(&self) -> u32 {
        self.requests
    }

    pub fn place(&self) -> Place {
        match self.state {
            State::Start { .. } | State::StartLf | State::Switch | State::Last => Place::Between,
            State::Body(_)
            | State::Size(..)
            | State::Extension(_)
            | State::SizeLf(_)
            | State::Chunk(_)
            | State::ChunkCr
            | State::ChunkLf
            | State::Fault(Fault::Chunk | Fault::Trailer) => Place::Body,
            State::Field | State::Name | State::Value | State::ValueLf | State::LastLf if self.frame.trailers => {
                Place::Body
            }
            _ => Place::Head,
        }
    }

    /// At least one byte, as long as they are of one kind. 0: none of these belongs to a request.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let first = bytes[0];
        let next = match self.state {
            State::Start { skipped } => match first {
                b'\r' if !skipped => State::StartLf,
                _ => {
                    self.begin();
                    return self.method(bytes);
                }
            },
            State::StartLf => must(first == b'\n', State::Start { skipped: true }, Fault::Line)?,
            State::Method => return self.method(bytes),
            State::Target => return self.target(bytes),
            // nearly always, and at once
            State::Version(0) if bytes.starts_with(NEWEST) => {
                self.count(NEWEST.len())?;
                self.frame.http_11 = true;
                self.state = State::Field;
                return Ok(NEWEST.len());
            }
            State::Version(at) => self.version(at, first)?,
            State::LineCr if first.is_ascii_digit() => return Err(Fault::Version),
            State::LineCr => must(first == b'\r', State::LineLf, Fault::Line)?,
            State::LineLf => must(first == b'\n', State::Field, Fault::Line)?,
            State::Field => match first {
                b'\r' => State::LastLf,
                _ => {
                    self.fields += 1;
                    if self.fields > self.limits.fields {
                        return Err(self.or_trailer(Fault::TooManyFields));
                    }
                    self.field = Field::default();
                    self.state = State::Name;
                    return self.name(bytes);
                }
            },
            State::Name => return self.name(bytes),
            State::Value => return self.value(bytes),
            State::ValueLf => {
                if first != b'\n' {
                    return Err(self.or_trailer(Fault::Field));
                }
                self.frame.take(&mut self.field)?;
                State::Field
            }
            State::LastLf => {
                if first != b'\n' {
                    return Err(self.or_trailer(Fault::Field));
                }
                self.after_fields()?
            }
            State::Body(left) | State::Chunk(left) => return Ok(self.data(left, bytes.len())),
            State::Size(digits, size) => return self.size(digits, size, bytes),
            State::Extension(size) => return self.extension(size, bytes),
            State::SizeLf(size) => must(first == b'\n', self.after_size(size), Fault::Chunk)?,
            State::ChunkCr => must(first == b'\r', State::ChunkLf, Fault::Chunk)?,
            State::ChunkLf => must(first == b'\n', State::Size(0, 0), Fault::Chunk)?,
            State::Switch | State::Last | State::Fault(_) => return Ok(0),
        };
        self.count(1)?;
        self.state = next;
        Ok(1)
    }

    fn begin(&mut self) {
        self.state = State::Method;
        self.size = 0;
        self.fields = 0;
        self.target = Target::default();
        self.field = Field::default();
        self.frame = Frame::default();
        self.extensions = (0, 0);
    }

    fn method(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let length = field::token(bytes);
        self.field.name(&bytes[..length]);
        self.count(length)?;
        if self.field.length() > METHOD {
            return Err(Fault::Line);
        }
        match bytes.get(length) {
            None => Ok(length),
            Some(b' ') if self.field.length() > 0 => {
                // what follows CONNECT is another protocol too
                self.frame.switch = self.field.is(b"CONNECT");
                self.target = Target::of(self.frame.switch);
                self.state = State::Target;
                self.count(1)?;
                Ok(length + 1)
            }
            Some(_) => Err(Fault::Line),
        }
    }

    fn target(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let length = self.target.take(bytes);
        self.count(length)?;
        match bytes.get(length) {
            None => Ok(length),
            Some(b' ') if self.target.is_whole() => {
                self.state = State::Version(0);
                self.count(1)?;
                Ok(length + 1)
            }
            Some(_) => Err(Fault::Line),
        }
    }

    fn version(&mut self, at: u8, byte: u8) -> Result<State, Fault> {
        const NAME: &[u8; 7] = b"HTTP/1.";
        match NAME.get(usize::from(at)) {
            Some(expected) if *expected == byte => Ok(State::Version(at + 1)),
            // a digit in its place: another version. Anything else is no version at all.
            Some(_) if at == 5 && byte.is_ascii_digit() => Err(Fault::Version),
            Some(_) => Err(Fault::Line),
            None if byte == b'0' || byte == b'1' => {
                self.frame.http_11 = byte == b'1';
                Ok(State::LineCr)
            }
            None => Err(Fault::Version),
        }
    }

    fn name(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let length = field::token(bytes);
        self.field.name(&bytes[..length]);
        self.count(length)?;
        match bytes.get(length) {
            None => Ok(length),
            Some(b':') if self.field.length() > 0 => {
                self.field.end_name();
                self.state = State::Value;
                self.count(1)?;
                Ok(length + 1)
            }
            Some(_) => Err(self.or_trailer(Fault::Field)),
        }
    }

    fn value(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let length = field::text(bytes);
        self.field.value(&bytes[..length])?;
        self.count(length)?;
        match bytes.get(length) {
            None => Ok(length),
            Some(b'\r') => {
                self.state = State::ValueLf;
                self.count(1)?;
                Ok(length + 1)
            }
            Some(_) => Err(self.or_trailer(Fault::Field)),
        }
    }

    /// The empty line is over.
    fn after_fields(&mut self) -> Result<State, Fault> {
        if self.frame.trailers {
            return Ok(self.after_message());
        }
        let chunked = self.frame.chunked()?;
        self.requests = self.requests.wrapping_add(1);
        if chunked {
            return Ok(State::Size(0, 0));
        }
        Ok(match self.frame.length() {
            0 if self.frame.switch => State::Switch,
            0 => self.after_message(),
            length => State::Body(length),
        })
    }

    fn after_message(&self) -> State {
        if self.frame.close() { State::Last } else { State::Start { skipped: false } }
    }

    /// So many bytes more of a head, or of trailers.
    fn count(&mut self, bytes: usize) -> Result<(), Fault> {
        let (limit, fault) = match self.state {
            State::Method | State::Target | State::Version(_) | State::LineCr | State::LineLf => {
                (self.limits.line, Fault::LineTooLong)
            }
            State::Field | State::Name | State::Value | State::ValueLf | State::LastLf if self.frame.trailers => {
                (TRAILERS, Fault::Trailer)
            }
            State::Field | State::Name | State::Value | State::ValueLf | State::LastLf => {
                (self.limits.head, Fault::HeadTooLarge)
            }
            // bounded in other ways
            _ => return Ok(()),
        };
        self.size += bytes;
        if self.size > limit { Err(fault) } else { Ok(()) }
    }

    fn or_trailer(&self, fault: Fault) -> Fault {
        if self.frame.trailers { Fault::Trailer } else { fault }
    }
}

fn must(is: bool, next: State, fault: Fault) -> Result<State, Fault> {
    if is { Ok(next) } else { Err(fault) }
}

#[cfg(test)]
mod tests;
