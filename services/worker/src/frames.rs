//! The frames of the control socket: come in bytes of a Unix stream, go out messages of `proto/worker.proto`, each
//! behind its length as a varint. Never holds more than one frame of [`LONGEST`] bytes: a length above that is a fault.

use bytes::{Buf, BytesMut};
use prost::Message;
use std::{io, marker::PhantomData};
use tokio_util::codec::{Decoder, Encoder};

/// Longest message in bytes. The longest there is carries two names and a 32-byte pass.
const LONGEST: usize = 16 * 1024;

/// Most bytes that a length up to [`LONGEST`] takes as a varint.
const LENGTH_BYTES: usize = 3;

/// Reads `In`, writes `Out`.
#[derive(Debug)]
pub struct Frames<In, Out> {
    direction: PhantomData<fn(Out) -> In>,
}

impl<In, Out> Frames<In, Out> {
    /// Both ways.
    pub fn new() -> Self {
        Self { direction: PhantomData }
    }
}

impl<In, Out> Default for Frames<In, Out> {
    fn default() -> Self {
        Self::new()
    }
}

impl<In: Message + Default, Out> Decoder for Frames<In, Out> {
    type Item = In;
    type Error = io::Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> io::Result<Option<In>> {
        let mut ahead = &bytes[..];
        let length = match prost::decode_length_delimiter(&mut ahead) {
            Ok(length) if length <= LONGEST => length,
            Err(_) if bytes.len() < LENGTH_BYTES => return Ok(None),
            Ok(_) | Err(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame longer than any message"));
            }
        };
        let prefix = bytes.len() - ahead.len();
        if ahead.len() < length {
            bytes.reserve(length - ahead.len());
            return Ok(None);
        }
        bytes.advance(prefix);
        In::decode(bytes.split_to(length)).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl<In, Out: Message> Encoder<Out> for Frames<In, Out> {
    type Error = io::Error;

    fn encode(&mut self, message: Out, bytes: &mut BytesMut) -> io::Result<()> {
        if message.encoded_len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message longer than a frame"));
        }
        message.encode_length_delimited(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    }
}

#[cfg(test)]
mod tests {
    use super::{Frames, LONGEST};
    use bytes::BytesMut;
    use proptest::prelude::*;
    use proto::worker::{Configure, FromSupervisor, from_supervisor};
    use tokio_util::codec::{Decoder, Encoder};

    type Both = Frames<FromSupervisor, FromSupervisor>;

    fn configure(app: String, pass: Vec<u8>) -> FromSupervisor {
        let configure = Configure { app, pass, capacity: 7, ..Configure::default() };
        FromSupervisor { message: Some(from_supervisor::Message::Configure(configure)) }
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_the_bytes_are_cut(
            messages in prop::collection::vec(("[a-z]{0,300}", prop::collection::vec(any::<u8>(), 0..64)), 0..8),
            step in 1_usize..40,
        ) {
            let messages: Vec<_> = messages.into_iter().map(|(app, pass)| configure(app, pass)).collect();
            let mut wire = BytesMut::new();
            for message in &messages {
                Both::new().encode(message.clone(), &mut wire).unwrap();
            }
            let (mut reader, mut arrived, mut read) = (Both::new(), BytesMut::new(), Vec::new());
            for piece in wire.chunks(step) {
                arrived.extend_from_slice(piece);
                while let Some(message) = reader.decode(&mut arrived).unwrap() {
                    read.push(message);
                }
            }
            prop_assert_eq!(read, messages);
            prop_assert!(arrived.is_empty());
        }

        #[test]
        fn no_bytes_make_the_reader_panic_or_wait_for_more_than_a_frame(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut arrived = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Both::new().decode(&mut arrived) {}
            prop_assert!(arrived.capacity() <= 2 * LONGEST);
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_on_both_sides() {
        let mut bytes = BytesMut::new();
        prost::encode_length_delimiter(LONGEST + 1, &mut bytes).unwrap();
        assert!(Both::new().decode(&mut bytes).is_err());
        assert!(Both::new().decode(&mut BytesMut::from(&[0xff_u8; 3][..])).is_err());
        assert!(Both::new().encode(configure("x".repeat(LONGEST), vec![]), &mut bytes).is_err());
    }
}
