//! Reads the cache of ldconfig(8), which lists the libraries in the folders of ld.so.conf. Format: glibc,
//! sysdeps/generic/dl-cache.h

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::OnceLock;

/// The contents of an /etc/ld.so.cache.
pub struct Cache {
    /// The file from the start of the new format. String offsets count from there.
    bytes: Vec<u8>,
    /// The number of entries.
    count: usize,
}

impl Cache {
    /// The magic of the new format, which glibc has written since 2.2.
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    /// Sizes of the new format, in bytes.
    const HEADER: usize = 48;
    const ENTRY: usize = 24;
    /// The magic of the old format. Until glibc 2.31, the file starts with the old format, and the new one follows.
    const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
    /// Sizes of the old format, in bytes.
    const OLD_HEADER: usize = 16;
    const OLD_ENTRY: usize = 12;

    /// Returns the cache of this system. Reads the file once. `None` if the file is missing or malformed.
    pub(super) fn of_this_system() -> Option<&'static Self> {
        static READ: OnceLock<Option<Cache>> = OnceLock::new();
        READ.get_or_init(|| Self::new(fs::read("/etc/ld.so.cache").ok()?)).as_ref()
    }

    /// Parses the contents of a cache file. Returns `None` if they have another format.
    #[must_use]
    pub fn new(mut bytes: Vec<u8>) -> Option<Self> {
        if bytes.starts_with(Self::OLD_MAGIC) {
            let count = number(&bytes, Self::OLD_HEADER - 4)?;
            let end = count.checked_mul(Self::OLD_ENTRY)?.checked_add(Self::OLD_HEADER)?;
            let start = end.checked_next_multiple_of(8)?;
            if start > bytes.len() {
                return None;
            }
            bytes = bytes.split_off(start);
        }
        if !bytes.starts_with(Self::MAGIC) {
            return None;
        }
        let count = number(&bytes, Self::MAGIC.len())?;
        let end = count.checked_mul(Self::ENTRY)?.checked_add(Self::HEADER)?;
        (end <= bytes.len()).then_some(Self { bytes, count })
    }

    /// Returns the paths of the libraries with this name, for all machines, in the loader's order. Malformed entries
    /// are skipped.
    pub fn paths(&self, name: &[u8]) -> impl Iterator<Item = &Path> {
        let text = |place: usize| self.bytes.get(place..);
        let entries = self.bytes.get(Self::HEADER..).unwrap_or_default().chunks_exact(Self::ENTRY);
        entries.take(self.count).filter_map(move |entry| {
            let rest = text(number(entry, 4)?)?.strip_prefix(name)?;
            if rest.first() != Some(&0) {
                return None;
            }
            let rest = text(number(entry, 8)?)?;
            let end = rest.iter().position(|byte| *byte == 0)?;
            Some(Path::new(OsStr::from_bytes(rest.get(..end)?)))
        })
    }
}

/// Reads a 32-bit number in native byte order.
fn number(bytes: &[u8], place: usize) -> Option<usize> {
    let bytes = bytes.get(place..)?.first_chunk()?;
    usize::try_from(u32::from_ne_bytes(*bytes)).ok()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::Cache;

    /// Makes a cache file with these entries, after `before`.
    fn cache(entries: &[(&str, &str)], before: &[u8]) -> Vec<u8> {
        let count = u32::try_from(entries.len()).unwrap();
        let mut texts = Vec::new();
        let mut table = Vec::new();
        for (name, path) in entries {
            let place = |texts: &Vec<u8>| 48 + 24 * count + u32::try_from(texts.len()).unwrap();
            let name_at = place(&texts);
            texts.extend([name.as_bytes(), b"\0"].concat());
            let path_at = place(&texts);
            texts.extend([path.as_bytes(), b"\0"].concat());
            table.extend([0x303, name_at, path_at, 0, 0, 0].into_iter().flat_map(u32::to_ne_bytes));
        }
        let head = [&b"glibc-ld.so.cache1.1"[..], &count.to_ne_bytes(), &[0; 24]].concat();
        [before, &head, &table, &texts].concat()
    }

    #[test]
    fn both_formats_of_the_cache_are_read() {
        let entries = [("liba.so.1", "/x/liba.so.1"), ("liba.so", "/x/liba.so"), ("liba.so", "/y/liba.so")];
        // The old format: a count of 1, one entry of 12 bytes, and 4 until the next multiple of 8.
        let old = [&b"ld.so-1.7.0\0"[..], &1_u32.to_ne_bytes(), &[0; 16]].concat();
        for before in [&b""[..], &old] {
            let whole = cache(&entries, before);
            let found = Cache::new(whole.clone()).unwrap();
            let paths = |name: &[u8]| found.paths(name).map(Path::to_path_buf).collect::<Vec<PathBuf>>();
            assert_eq!(paths(b"liba.so"), [Path::new("/x/liba.so"), Path::new("/y/liba.so")]);
            assert_eq!(paths(b"liba.so.1"), [Path::new("/x/liba.so.1")]);
            assert!(paths(b"liba").is_empty() && paths(b"/x/liba.so").is_empty());
            for size in 0..whole.len() {
                if let Some(cut) = Cache::new(whole.get(..size).unwrap().to_vec()) {
                    assert!(cut.paths(b"liba.so").count() <= 2);
                }
            }
        }
        assert!(Cache::new(b"something else".to_vec()).is_none());
    }
}
