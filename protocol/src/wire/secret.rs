//! Steps 4 and 9: the form of the secrets of nodes: a prefix, for secret scanners and so that none is taken for another, and 32 random
//! bytes in hexadecimal.

/// The secret of these bytes.
pub(super) fn of(prefix: &str, bytes: [u8; 32]) -> String {
    format!("{prefix}{}", hex::encode(bytes))
}

/// Whether a text has the form of one.
pub(super) fn is_one(prefix: &str, text: &str) -> bool {
    let is_digit = |b| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    text.strip_prefix(prefix).is_some_and(|digits| digits.len() == 64 && digits.bytes().all(is_digit))
}
