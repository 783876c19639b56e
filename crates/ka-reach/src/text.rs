//! The modules that make text, under one name. New code names the modules.

pub use crate::brief::{brief, brief_settings, brief_text};
pub use crate::escape::{lossless, visible, visible_lines};
pub use crate::plural::count;
pub use crate::reason::{reason, socket_reason};
