//! The parsers of untrusted input, for the fuzz targets in `fuzz/`.
//!
//! This module is not part of the API. The fuzz targets use only this module, so renaming or moving a parser changes
//! only this file.

pub use crate::bpf::btf::Types;
pub use crate::cgroup::mounts::parse_v2 as cgroup_mount;
pub use crate::diag::{DestroyedSocket, DiagSocket, State, Transfer, read as read_diag, read_destroyed};
pub use crate::elf::{CLibrary, Cache, Elf, imports};
pub use crate::escape::{lossless, visible, visible_lines};
pub use crate::process::{StatusFields, socket_inode, stat_field};
pub use crate::sys::folder::numbers_in;
