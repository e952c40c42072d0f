//! Paths as records hold them: as text, and as a list of bytes where they are none. Of a path that is no text, serde's own
//! makes an error, and folders are named in Latin-1 to this day.

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ffi::OsString;
use std::fmt;
use std::ops::Deref;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A path of any bytes, which a record can hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilePath(PathBuf);

impl Deref for FilePath {
    type Target = PathBuf;

    fn deref(&self) -> &PathBuf {
        &self.0
    }
}

impl<T: Into<PathBuf>> From<T> for FilePath {
    fn from(path: T) -> Self {
        FilePath(path.into())
    }
}

impl Serialize for FilePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize(deserializer).map(FilePath)
    }
}

/// For a field that is a `PathBuf` itself: `#[serde(with = ...)]`.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => serializer.serialize_str(text),
        None => path.as_os_str().as_bytes().serialize(serializer),
    }
}

/// The other direction of [`serialize`].
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    struct Either;
    impl<'de> Visitor<'de> for Either {
        type Value = PathBuf;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a path")
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<PathBuf, E> {
            Ok(text.into())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<PathBuf, A::Error> {
            let mut path = Vec::new();
            while let Some(byte) = bytes.next_element()? {
                path.push(byte);
            }
            Ok(OsString::from_vec(path).into())
        }
    }
    deserializer.deserialize_any(Either)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_a_path_as_text_where_it_is_text_and_as_bytes_where_it_is_not() {
        let path = |bytes: &[u8]| FilePath::from(OsString::from_vec(bytes.to_vec()));
        for (path, record) in [
            (path(b"/caf\xc3\xa9"), "\"/café\"".to_owned()),
            (path(b"/caf\xe9"), "[47,99,97,102,233]".to_owned()),
            (path(b""), "\"\"".to_owned()),
        ] {
            assert_eq!(serde_json::to_string(&path).unwrap(), record);
            assert_eq!(serde_json::from_str::<FilePath>(&record).unwrap(), path);
        }
        assert!(serde_json::from_str::<FilePath>("[256]").is_err());
        assert!(serde_json::from_str::<FilePath>("7").is_err());
    }
}
