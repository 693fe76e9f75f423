//! The request target (RFC 9112, section 3.2). In: its bytes, in whatever pieces they come. Out: how many of them may be in
//! it. Never more than RFC 3986 and what browsers send in spite of it: nothing outside of ASCII, no space, no fragment.

/// A target that is being read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Target {
    form: Form,
    /// CONNECT: an authority and nothing else.
    authority_only: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Start,
    Asterisk,
    /// So many bytes of `http://`, or of `https://`.
    Scheme(usize, bool),
    /// A host's name, and whether it has begun.
    Name(bool),
    /// An address between brackets, ...
    Address,
    /// ... and after them.
    AfterAddress,
    Port,
    Path,
    Query,
}

impl Target {
    pub(super) fn of(connect: bool) -> Self {
        Self { form: if connect { Form::Name(false) } else { Form::Start }, authority_only: connect }
    }

    /// It may end here.
    pub(super) fn is_whole(&self) -> bool {
        match self.form {
            Form::Asterisk | Form::Name(true) | Form::AfterAddress | Form::Port | Form::Path | Form::Query => true,
            Form::Start | Form::Scheme(..) | Form::Name(false) | Form::Address => false,
        }
    }

    /// How many of these bytes belong to it.
    pub(super) fn take(&mut self, bytes: &[u8]) -> usize {
        // most of it is path
        let path =
            if self.form == Form::Path { bytes.iter().position(|byte| !PATH[usize::from(*byte)]) } else { Some(0) };
        let Some(path) = path else { return bytes.len() };
        for (at, byte) in bytes.iter().enumerate().skip(path) {
            match self.after(*byte) {
                Some(form) => self.form = form,
                None => return at,
            }
        }
        bytes.len()
    }

    fn after(&self, byte: u8) -> Option<Form> {
        const SCHEME: &[u8; 7] = b"http://";
        let path = !self.authority_only;
        Some(match (self.form, byte) {
            (Form::Path, b'?') => Form::Query,
            (Form::Path, _) if in_path(byte) => Form::Path,
            (Form::Query, _) if in_query(byte) => Form::Query,
            (Form::Start, b'/') => Form::Path,
            (Form::Start, b'*') => Form::Asterisk,
            (Form::Start, b'h' | b'H') => Form::Scheme(1, false),
            (Form::Scheme(4, false), b's' | b'S') => Form::Scheme(4, true),
            (Form::Scheme(at, secure), _) if byte.to_ascii_lowercase() == SCHEME[at] => {
                if at + 1 == SCHEME.len() {
                    Form::Name(false)
                } else {
                    Form::Scheme(at + 1, secure)
                }
            }
            (Form::Name(false), b'[') => Form::Address,
            (Form::Name(_), b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_') => Form::Name(true),
            (Form::Address, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' | b':' | b'.') => Form::Address,
            (Form::Address, b']') => Form::AfterAddress,
            (Form::Name(true) | Form::AfterAddress, b':') => Form::Port,
            (Form::Port, b'0'..=b'9') => Form::Port,
            (Form::Name(true) | Form::AfterAddress | Form::Port, b'/') if path => Form::Path,
            (Form::Name(true) | Form::AfterAddress | Form::Port, b'?') if path => Form::Query,
            _ => return None,
        })
    }
}

const PATH: [bool; 256] = {
    let mut map = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        map[byte as usize] = in_path(byte);
        byte += 1;
    }
    map
};

const fn in_path(byte: u8) -> bool {
    (in_query(byte) && !matches!(byte, b'?' | b'`')) || byte == b'"'
}

const fn in_query(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'#' | b'<' | b'>' | b'"')
}
