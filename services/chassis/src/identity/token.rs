//! Join tokens: `servery1.<role>.<sha256 of the root key>.<id>.<secret>`. In: a token file's text. Out: its parts. The
//! hash is what a process trusts before it has met anybody; the secret is what the cert-sidecar trusts. A token never
//! shows its secret in `Debug`.

use super::Role;
use std::fmt;

const FORM: &str = "servery1";
/// Of the whole text. A wrong path such as `/dev/zero` ends here.
pub(super) const LENGTH_MAX: u64 = 512;

/// SHA-256 of the DER of the root's SubjectPublicKeyInfo.
pub type RootHash = [u8; 32];

/// What lets a process enrol.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub role: Role,
    pub root: RootHash,
    /// Names the token in the cert-sidecar's store.
    pub id: String,
    pub secret: String,
}

/// Why a text is no token. It never quotes the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("it is empty")]
    Empty,
    #[error("it is not of the form {FORM}.<role>.<sha256>.<id>.<secret>")]
    Form,
    #[error("its role is none of balancer, app_server")]
    Role,
    #[error("its third part is not a SHA-256 in lower-case hexadecimal")]
    RootHash,
    #[error("its id or secret is not of lower-case letters and digits, or too short or too long")]
    Secret,
}

impl JoinToken {
    /// White space around it is ignored: people paste tokens.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim_ascii();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        let parts: Vec<&str> = text.splitn(6, '.').collect();
        let [FORM, role, root, id, secret] = parts.as_slice() else { return Err(TokenError::Form) };
        let role: Role = role.parse().map_err(|_| TokenError::Role)?;
        // Nobody joins as the authority itself.
        if role == Role::CertSidecar {
            return Err(TokenError::Role);
        }
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let mut hash = [0; 32];
        hex::decode_to_slice(root, &mut hash).ok().filter(|()| plain(root)).ok_or(TokenError::RootHash)?;
        if !(1..=32).contains(&id.len()) || !(32..=128).contains(&secret.len()) || !plain(id) || !plain(secret) {
            return Err(TokenError::Secret);
        }
        Ok(Self { role, root: hash, id: (*id).to_owned(), secret: (*secret).to_owned() })
    }

    /// The text of a token file.
    pub fn expose(&self) -> String {
        let Self { role, root, id, secret } = self;
        format!("{FORM}.{role}.{}.{id}.{secret}", hex::encode(root))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("role", &self.role).field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_wrong_with_a_token_is_told_without_quoting_it() {
        let (root, secret) = ("ab".repeat(32), "0123456789abcdef".repeat(4));
        let good = format!("servery1.app_server.{root}.id7.{secret}");
        let token = JoinToken::parse(&format!(" {good}\n")).unwrap();
        assert_eq!((token.role, token.id.as_str(), token.root), (Role::AppServer, "id7", [0xab; 32]));
        assert_eq!(token.expose(), good);
        assert!(!format!("{token:?}").contains(&secret));

        for (wrong, error) in [
            (" \n".to_owned(), TokenError::Empty),
            ("x".to_owned(), TokenError::Form),
            (good.replace("servery1", "servery2"), TokenError::Form),
            (format!("{good}.more"), TokenError::Form),
            (good.replace("app_server", "root"), TokenError::Role),
            (good.replace("app_server", "cert_sidecar"), TokenError::Role),
            (good.replace("abab", "ABAB"), TokenError::RootHash),
            (good.replace("abab", "ab"), TokenError::RootHash),
            (good.replace("id7", ""), TokenError::Secret),
            (good.replace("id7", "../x"), TokenError::Form),
            (good.replace("id7", "I7"), TokenError::Secret),
            (good.replace(&secret, "short"), TokenError::Secret),
        ] {
            let refused = JoinToken::parse(&wrong).unwrap_err();
            assert_eq!(refused, error, "{wrong}");
            assert!(!refused.to_string().contains(&secret));
        }
    }

    proptest! {
        #[test]
        fn a_token_reads_back(root: [u8; 32], id in "[a-z0-9]{1,32}", secret in "[a-z0-9]{32,128}", balancer: bool) {
            let role = if balancer { Role::Balancer } else { Role::AppServer };
            let token = JoinToken { role, root, id, secret };
            prop_assert_eq!(JoinToken::parse(&token.expose()), Ok(token));
        }

        #[test]
        fn a_text_that_is_a_token_is_that_token_and_no_text_panics(text in "(servery1\\.)?[a-z_]{0,10}\\.[0-9a-f]{60,68}\\.[a-z0-9]{0,5}\\.\\PC{0,70}", any: String) {
            let _ = JoinToken::parse(&any);
            if let Ok(token) = JoinToken::parse(&text) {
                prop_assert_eq!(token.expose(), text.trim_ascii());
            }
        }
    }
}
