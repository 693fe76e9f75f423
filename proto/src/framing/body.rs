//! Bodies: of a length, or in chunks (RFC 9112, sections 6 and 7). In: their bytes, in whatever pieces they come. Out: where
//! they end.

use super::{Fault, Framing, State, field};

/// Digits of a chunk's size: as many as 64 bits have.
const CHUNK_DIGITS: u8 = 16;
/// Bytes of extensions on one chunk, ...
const CHUNK_EXTENSIONS: u32 = 256;
/// ... and on all chunks of a body. Nobody is known to use them.
const BODY_EXTENSIONS: u32 = 8 * 1024;

impl Framing {
    /// Bytes of a body.
    pub(super) fn data(&mut self, left: u64, here: usize) -> usize {
        let taken = usize::try_from(left).map_or(here, |left| left.min(here));
        let left = left - taken as u64;
        self.state = match self.state {
            State::Body(_) if left == 0 => self.after_message(),
            State::Body(_) => State::Body(left),
            _ if left == 0 => State::ChunkCr,
            _ => State::Chunk(left),
        };
        taken
    }

    pub(super) fn size(&mut self, mut digits: u8, mut size: u64, bytes: &[u8]) -> Result<usize, Fault> {
        for (at, byte) in bytes.iter().enumerate() {
            let digit = match (byte, digits) {
                (b'0'..=b'9', _) => byte - b'0',
                (b'a'..=b'f', _) => byte - b'a' + 10,
                (b'A'..=b'F', _) => byte - b'A' + 10,
                (b'\r', 1..) => {
                    self.state = State::SizeLf(size);
                    return Ok(at + 1);
                }
                (b';', 1..) => {
                    self.extensions.1 = 0;
                    self.state = State::Extension(size);
                    return Ok(at + 1);
                }
                _ => return Err(Fault::Chunk),
            };
            if digits == CHUNK_DIGITS {
                return Err(Fault::Chunk);
            }
            digits += 1;
            size = size << 4 | u64::from(digit);
        }
        self.state = State::Size(digits, size);
        Ok(bytes.len())
    }

    pub(super) fn extension(&mut self, size: u64, bytes: &[u8]) -> Result<usize, Fault> {
        let length = field::text(bytes);
        let counted = u32::try_from(length).unwrap_or(u32::MAX);
        let (body, chunk) = self.extensions;
        self.extensions = (body.saturating_add(counted), chunk.saturating_add(counted));
        if self.extensions.0 > BODY_EXTENSIONS || self.extensions.1 > CHUNK_EXTENSIONS {
            return Err(Fault::Chunk);
        }
        match bytes.get(length) {
            None => Ok(length),
            Some(b'\r') => {
                self.state = State::SizeLf(size);
                Ok(length + 1)
            }
            Some(_) => Err(Fault::Chunk),
        }
    }

    pub(super) fn after_size(&mut self, size: u64) -> State {
        if size > 0 {
            return State::Chunk(size);
        }
        self.frame.trailers = true;
        self.fields = 0;
        self.size = 0;
        State::Field
    }
}
