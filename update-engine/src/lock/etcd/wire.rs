//! Step 9, permit: etcd v3 as its JSON gateway speaks it. Bytes are base64, 64-bit numbers are texts, and what is zero,
//! false or empty is left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Bytes {
    pub(super) fn of(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    /// The end of the range of all keys that begin with this one.
    pub(super) fn end_of_prefix(prefix: &str) -> Self {
        let mut end = prefix.as_bytes().to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return Self(end);
            }
        }
        // All keys there are.
        Self(vec![0])
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

/// A 64-bit number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Number(pub(super) u64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_string())
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Number(u64),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(Self(number)),
            Form::Text(text) => text.parse().map(Self).map_err(D::Error::custom),
        }
    }
}

/// `POST /v3/kv/range`
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Range {
    pub(super) key: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) range_end: Option<Bytes>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) keys_only: bool,
}

/// One key with its value.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Pair {
    pub(super) key: Bytes,
    #[serde(default)]
    pub(super) mod_revision: Number,
    #[serde(default)]
    pub(super) value: Bytes,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Ranged {
    #[serde(default)]
    pub(super) kvs: Vec<Pair>,
}

/// `POST /v3/kv/txn`: what must hold, and what is done then.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Txn {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) compare: Vec<Compare>,
    pub(super) success: Vec<Operation>,
}

/// A key's revision, 0 where there is no such key.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Compare {
    key: Bytes,
    target: &'static str,
    result: &'static str,
    mod_revision: Number,
}

impl Compare {
    pub(super) fn revision(key: &str, revision: u64) -> Self {
        Self { key: Bytes::of(key), target: "MOD", result: "EQUAL", mod_revision: Number(revision) }
    }
}

#[derive(Clone, Debug, Serialize)]
pub(super) enum Operation {
    #[serde(rename = "request_range")]
    Range(Range),
    #[serde(rename = "request_put")]
    Put { key: Bytes, value: Bytes },
    #[serde(rename = "request_delete_range")]
    Delete { key: Bytes },
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct TxnDone {
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    pub(super) responses: Vec<Response>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Response {
    #[serde(default)]
    pub(super) response_range: Ranged,
}

/// `POST /v3/auth/authenticate`
#[derive(Serialize)]
pub(super) struct Authenticate<'a> {
    pub(super) name: &'a str,
    pub(super) password: &'a str,
}

#[derive(Deserialize)]
pub(super) struct Authenticated {
    pub(super) token: String,
}

/// `POST /v3/cluster/member/list`
#[derive(Debug, Deserialize)]
pub(super) struct Members {
    #[serde(default)]
    pub(super) members: Vec<Member>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Member {
    #[serde(rename = "ID", default)]
    pub(super) id: Number,
    /// Empty until it was started once.
    #[serde(default)]
    pub(super) name: String,
    #[serde(rename = "clientURLs", default)]
    pub(super) client_urls: Vec<String>,
    #[serde(rename = "isLearner", default)]
    pub(super) is_learner: bool,
}

/// `POST /v3/maintenance/status`
#[derive(Debug, Deserialize)]
pub(super) struct MemberStatus {
    /// 0 where it knows of none.
    #[serde(default)]
    pub(super) leader: Number,
    #[serde(default)]
    pub(super) errors: Vec<String>,
}

/// An answer that is no success.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Trouble {
    /// gRPC's status code.
    #[serde(default)]
    pub(super) code: u32,
    /// The text, under two names.
    #[serde(default)]
    message: String,
    #[serde(default)]
    error: String,
}

impl Trouble {
    /// What it says, if anything.
    pub(super) fn text(&self) -> &str {
        if self.message.is_empty() { &self.error } else { &self.message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        for (prefix, end) in [("a/", &b"a0"[..]), ("a", b"b"), ("", b"\0"), ("x\u{7f}", b"x\x80")] {
            assert_eq!(Bytes::end_of_prefix(prefix).0, end, "{prefix:?}");
        }
    }

    #[test]
    fn transactions_are_written_as_the_gateway_reads_them() {
        let txn = Txn {
            compare: vec![Compare::revision("k", 7)],
            success: vec![
                Operation::Put { key: Bytes::of("k"), value: Bytes::of("v") },
                Operation::Range(Range { key: Bytes::of("k"), ..Range::default() }),
            ],
        };
        assert_eq!(
            serde_json::to_string(&txn).unwrap(),
            r#"{"compare":[{"key":"aw==","target":"MOD","result":"EQUAL","mod_revision":"7"}],"success":[{"request_put":{"key":"aw==","value":"dg=="}},{"request_range":{"key":"aw=="}}]}"#
        );
    }

    #[test]
    fn numbers_are_read_as_texts_and_as_numbers_and_what_is_left_out_is_zero() {
        let done: TxnDone = serde_json::from_str(
            r#"{"succeeded":true,"responses":[{"response_range":{"kvs":[{"key":"aw==","mod_revision":"12"}]}},{}]}"#,
        )
        .unwrap();
        assert_eq!(done.responses[0].response_range.kvs[0].mod_revision, Number(12));
        assert!(done.responses[1].response_range.kvs.is_empty());
        assert_eq!(serde_json::from_str::<Number>("3").unwrap(), Number(3));
        assert!(serde_json::from_str::<Number>("\"-3\"").is_err());
    }
}
