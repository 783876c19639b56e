//! Re-exports of the modules that make text, for older code. New code uses those modules directly.

pub use crate::brief::{brief, brief_settings, brief_text};
pub use crate::escape::{lossless, visible, visible_lines};
pub use crate::plural::count;
pub use crate::reason::{reason, socket_reason};
