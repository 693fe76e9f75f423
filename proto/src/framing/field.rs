//! Fields, as far as the frame depends on them. In: names and values, in whatever pieces they come. Out: how the message's
//! end is found, whether it is the connection's last, whether it asks for another protocol.

use super::Fault;

/// The longest name that matters here: `transfer-encoding`.
const NAME: usize = 17;
/// The longest word of a value that matters, `keep-alive`, and one byte to see that another one is longer.
const WORD: usize = 11;
/// Digits of a length: what fits into 64 bits in any case.
const DIGITS: u8 = 18;

const TOKEN: [bool; 256] = {
    let mut map = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        map[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        byte += 1;
    }
    map
};

/// How many bytes a token has that begins here (RFC 9110, section 5.6.2).
pub(super) fn token(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| !TOKEN[usize::from(*byte)]).unwrap_or(bytes.len())
}

/// How many bytes are a field's content, spaces included (RFC 9110, section 5.5).
pub(super) fn text(bytes: &[u8]) -> usize {
    let good = |byte: u8| (byte >= b' ' && byte != 0x7f) || byte == b'\t';
    let mut at = 0;
    // the compiler makes one comparison of these sixteen
    while let Some(block) = bytes[at..].first_chunk::<16>() {
        if !block.iter().fold(true, |all, byte| all & good(*byte)) {
            break;
        }
        at += 16;
    }
    bytes[at..].iter().position(|byte| !good(*byte)).map_or(bytes.len(), |bad| at + bad)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Known {
    #[default]
    Other,
    Host,
    Length,
    Coding,
    Connection,
    Upgrade,
}

/// A method, or a field's line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Field {
    name: [u8; NAME],
    length: usize,
    known: Known,
    word: Word,
    options: Options,
    /// The value as a number, and how many digits it has.
    number: (u64, u8),
}

/// What `Connection` may say that matters here.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    close: bool,
    keep_alive: bool,
}

/// The member of a list that is just read, in lower case.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    bytes: [u8; WORD],
    length: usize,
    /// There was a space behind it.
    ended: bool,
}

impl Word {
    /// False: a second word where there should be one.
    fn push(&mut self, byte: u8) -> bool {
        if byte == b' ' || byte == b'\t' {
            self.ended = self.length > 0;
            return true;
        }
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte.to_ascii_lowercase();
            self.length += 1;
        }
        !self.ended
    }

    fn is(&self, word: &[u8]) -> bool {
        self.bytes[..self.length] == *word
    }
}

impl Field {
    /// More of its name, or of the method.
    pub(super) fn name(&mut self, bytes: &[u8]) {
        if let Some(room) = self.name.get_mut(self.length..) {
            let kept = bytes.len().min(room.len());
            room[..kept].copy_from_slice(&bytes[..kept]);
        }
        self.length += bytes.len();
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    pub(super) fn is(&self, name: &[u8]) -> bool {
        self.name.get(..self.length) == Some(name)
    }

    pub(super) fn end_name(&mut self) {
        let (name, known): (&[u8], Known) = match self.length {
            4 => (b"host", Known::Host),
            7 => (b"upgrade", Known::Upgrade),
            10 => (b"connection", Known::Connection),
            14 => (b"content-length", Known::Length),
            17 => (b"transfer-encoding", Known::Coding),
            _ => return,
        };
        if self.name[..self.length].eq_ignore_ascii_case(name) {
            self.known = known;
        }
    }

    /// More of its value.
    pub(super) fn value(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let good = match self.known {
            Known::Other | Known::Host | Known::Upgrade => true,
            Known::Connection => {
                bytes.iter().for_each(|byte| self.option(*byte));
                true
            }
            Known::Length => bytes.iter().all(|byte| self.digit(*byte)),
            Known::Coding => bytes.iter().all(|byte| self.word.push(*byte)),
        };
        if good { Ok(()) } else { Err(Fault::Frame) }
    }

    fn digit(&mut self, byte: u8) -> bool {
        let (number, digits) = &mut self.number;
        match byte {
            b' ' | b'\t' => self.word.ended = *digits > 0,
            b'0'..=b'9' if !self.word.ended && *digits < DIGITS => {
                *number = *number * 10 + u64::from(byte - b'0');
                *digits += 1;
            }
            _ => return false,
        }
        true
    }

    fn option(&mut self, byte: u8) {
        if byte == b',' {
            self.end_option();
        } else if !self.word.push(byte) {
            // two words without a comma are none that anybody knows
            self.word.length = WORD;
        }
    }

    fn end_option(&mut self) {
        self.options.close |= self.word.is(b"close");
        self.options.keep_alive |= self.word.is(b"keep-alive");
        self.word = Word::default();
    }
}

/// What the fields say of the message.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Frame {
    pub(super) http_11: bool,
    /// What comes now is its trailers.
    pub(super) trailers: bool,
    /// It asks for another protocol.
    pub(super) switch: bool,
    length: Option<u64>,
    coded: bool,
    options: Options,
}

impl Frame {
    /// One more field, now that it is whole.
    pub(super) fn take(&mut self, field: &mut Field) -> Result<(), Fault> {
        if self.trailers {
            // what would change the message after it was read (RFC 9110, section 6.5.1)
            return if matches!(field.known, Known::Other | Known::Upgrade) { Ok(()) } else { Err(Fault::Trailer) };
        }
        match field.known {
            Known::Other | Known::Host => {}
            Known::Upgrade => self.switch = true,
            Known::Connection => {
                field.end_option();
                self.options.close |= field.options.close;
                self.options.keep_alive |= field.options.keep_alive;
            }
            Known::Length => {
                let (number, digits) = field.number;
                if digits == 0 || self.length.replace(number).is_some() {
                    return Err(Fault::Frame);
                }
            }
            Known::Coding => {
                if self.coded || !field.word.is(b"chunked") {
                    return Err(Fault::Frame);
                }
                self.coded = true;
            }
        }
        Ok(())
    }

    /// RFC 9112, section 6.1: both ways to say the length at once are an attack, and HTTP/1.0 knows no chunks.
    pub(super) fn chunked(&self) -> Result<bool, Fault> {
        if self.coded && (self.length.is_some() || !self.http_11) {
            return Err(Fault::Frame);
        }
        Ok(self.coded)
    }

    pub(super) fn length(&self) -> u64 {
        self.length.unwrap_or(0)
    }

    /// No request follows on this connection (RFC 9112, section 9.3).
    pub(super) fn close(&self) -> bool {
        self.options.close || (!self.http_11 && !self.options.keep_alive)
    }
}
