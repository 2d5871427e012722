//! What several examples share.

pub mod tiny_files;
pub mod tiny_world;
