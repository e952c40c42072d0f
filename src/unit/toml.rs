//! The TOML front door.
