//! A WebSocket that a client opens over HTTP/2 (RFC 8441), asked of a worker that speaks HTTP/1.1 (RFC 6455). In: an extended
//! CONNECT, a number that is new. Out: the fields a worker is asked by, whether it has agreed, the answer as the client knows
//! it. Pure. Over HTTP/2 there are no key and no proof (RFC 8441, section 5): those are between us and the worker, so that
//! nobody who only repeats what it is sent is taken for a WebSocket.

use crate::fields;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::ext::Protocol;

const NAME: &str = "websocket";
/// What the proof is made of besides the key (RFC 6455, section 1.3).
const SALT: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether that is what `:protocol` asks for; names of protocols have no case (RFC 9110, section 7.8).
pub(crate) fn is_named(protocol: &Protocol) -> bool {
    protocol.as_str().eq_ignore_ascii_case(NAME)
}

/// What a worker is asked, and what it has to answer.
#[derive(Debug)]
pub(crate) struct Handshake {
    key: HeaderValue,
    proof: HeaderValue,
}

impl Handshake {
    /// `nonce`: 16 bytes that were not used before (RFC 6455, section 4.1).
    pub(crate) fn new(nonce: u128) -> Self {
        let key = STANDARD.encode(nonce.to_be_bytes());
        let proof = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{SALT}").as_bytes()));
        let value = |text: String| HeaderValue::try_from(text).expect("base64 is a field value");
        Self { key: value(key), proof: value(proof) }
    }

    /// Makes a client's cleaned fields those of an HTTP/1.1 handshake. The version, and what else the two sides agree on, is
    /// theirs.
    pub(crate) fn ask(&self, headers: &mut HeaderMap) {
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(NAME));
        headers.insert(header::SEC_WEBSOCKET_KEY, self.key.clone());
    }

    /// What a client has to check (RFC 6455, section 4.1); here that is us.
    pub(crate) fn is_agreed(&self, headers: &HeaderMap) -> bool {
        let upgraded = fields::upgrade(headers);
        let mut proofs = headers.get_all(header::SEC_WEBSOCKET_ACCEPT).iter();
        upgraded.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(NAME.as_bytes()))
            && proofs.next() == Some(&self.proof)
            && proofs.next().is_none()
    }
}

/// Makes a worker's cleaned 101 what CONNECT is answered with. The lengths that it may not have had either are gone: in a
/// stream they would be believed.
pub(crate) fn answer<B>(response: &mut Response<B>) {
    *response.status_mut() = StatusCode::OK;
    for name in [header::SEC_WEBSOCKET_ACCEPT, header::CONTENT_LENGTH, header::TRAILER] {
        response.headers_mut().remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed(fields: &[(&'static str, &'static str)]) -> bool {
        // RFC 6455, section 1.3: this key has this proof
        let key = STANDARD.decode("dGhlIHNhbXBsZSBub25jZQ==").unwrap();
        let handshake = Handshake::new(u128::from_be_bytes(key.try_into().unwrap()));
        assert_eq!(handshake.key, "dGhlIHNhbXBsZSBub25jZQ==");
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        handshake.is_agreed(&headers)
    }

    #[test]
    fn a_worker_agrees_by_the_proof_that_belongs_to_the_key() {
        let whole = [
            ("connection", "Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ];
        assert!(agreed(&whole));
        for missing in 0..whole.len() {
            let rest: Vec<_> = whole.into_iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, f)| f).collect();
            assert!(!agreed(&rest), "{rest:?}");
        }
        for (at, wrong) in [(0, "close"), (1, "h2c"), (1, "x"), (2, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo"), (2, "")] {
            let mut fields = whole;
            fields[at].1 = wrong;
            assert!(!agreed(&fields), "{fields:?}");
        }
        assert!(!agreed(&[&whole[..], &whole[2..]].concat()), "twice is not once");
    }

    #[test]
    fn every_handshake_has_a_key_of_its_own() {
        assert_ne!(Handshake::new(1).key, Handshake::new(2).key);
        assert_ne!(Handshake::new(1).proof, Handshake::new(2).proof);
    }
}
