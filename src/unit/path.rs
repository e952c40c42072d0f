//! Paths as records hold them: as text, and byte by byte where they are none. Of a path that is no text, serde's own
//! makes an error, and folders are named in Latin-1 to this day.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ffi::OsString;
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

/// What a path that is no text begins with in a record: no path holds a NUL byte. Each of its bytes is a character then.
const BYTES: char = '\0';

/// For a field that is a `PathBuf` itself: `#[serde(with = ...)]`.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    let bytes = path.as_os_str().as_bytes();
    match path.to_str() {
        Some(text) => serializer.serialize_str(text),
        None => {
            let mut text = String::from(BYTES);
            text.extend(bytes.iter().map(|byte| char::from(*byte)));
            serializer.serialize_str(&text)
        }
    }
}

/// The other direction of [`serialize`].
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(deserializer)?;
    let Some(bytes) = text.strip_prefix(BYTES) else {
        return Ok(text.into());
    };
    let bytes: Result<Vec<u8>, _> = bytes.chars().map(u8::try_from).collect();
    let bytes = bytes.map_err(|_| D::Error::custom("this is no path"))?;
    Ok(OsString::from_vec(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_a_path_as_text_where_it_is_text_and_by_its_bytes_where_it_is_not() {
        let path = |bytes: &[u8]| FilePath::from(OsString::from_vec(bytes.to_vec()));
        for (path, record) in [
            (path(b"/caf\xc3\xa9"), "\"/café\"".to_owned()),
            (path(b"/caf\xe9"), "\"\\u0000/café\"".to_owned()),
            (path(b""), "\"\"".to_owned()),
        ] {
            assert_eq!(serde_json::to_string(&path).unwrap(), record);
            assert_eq!(serde_json::from_str::<FilePath>(&record).unwrap(), path);
        }
        assert!(serde_json::from_str::<FilePath>("\"\\u0000ā\"").is_err());
        assert!(serde_json::from_str::<FilePath>("7").is_err());
    }
}
