//! Tests that `ka_explain` accepts the same texts as `ka_parse`, and that its message names the wrong item.

use std::ffi::{CStr, CString};
use std::ptr;

use ka_test::libka::{CONFIG_INIT, call};
use libc::{EINVAL, c_char, c_int};

/// Texts that `ka_parse` accepts.
const GOOD: &[&str] = &[
    "60,10,5",
    "1m:10s:5",
    " 1h : 60000ms : 5 ",
    "idle=5m, intvl=30s",
    "idle=32767,intvl=32767,cnt=127",
    "on",
    "off",
    "keep",
    "on,\ncnt=3",
    "keep,cnt=3,user_timeout=auto",
    "user_timeout=0",
    "user_timeout=none",
    "user_timeout=1",
    "user_timeout=2147483647",
];

/// Texts that `ka_parse` rejects, and the message.
const BAD: &[(&str, &[&str])] = &[
    ("", &["\"\": "]),
    (",", &["\"\": "]),
    ("60,10", &["numbers without names must be three: idle,intvl,cnt"]),
    ("60,10,5,7", &["\"7\": numbers without names must be three: idle,intvl,cnt"]),
    ("60 10 5", &["60 10 5"]),
    ("0,10,5", &["\"0\": ", "idle", "1..32767"]),
    ("60,0,5", &["\"0\": ", "intvl", "1..32767"]),
    ("60,10,128", &["\"128\": ", "cnt must be 1..127 probes"]),
    ("cnt=0", &["\"cnt=0\": cnt must be 1..127 probes"]),
    ("idle=60,intvl=10,cnt=128", &["\"cnt=128\": ", "1..127"]),
    ("idle=72h", &["\"idle=72h\": ", "1..32767", "9h 6m 7s"]),
    ("idle=1500ms", &["\"idle=1500ms\": ", "1s"]),
    ("cnt=5s", &["\"cnt=5s\": "]),
    ("idle=05", &["\"idle=05\": "]),
    ("idle", &["\"idle\": "]),
    ("speed=5", &["\"speed=5\": "]),
    ("on,off", &["\"off\": "]),
    ("cnt=5,cnt=6", &["\"cnt=6\": "]),
    ("user_timeout=2147483648", &["\"user_timeout=2147483648\": ", "2147483647"]),
    ("idle=-1", &["\"idle=-1\": "]),
    ("rto_max=none", &["\"rto_max=none\": ", "auto"]),
    ("rto_max=999", &["\"rto_max=999\": ", "1000..120000 ms"]),
    ("idle=9999999999999999999999", &["\"idle=9999999999999999999999\": "]),
    ("idle=32767,intvl=32767,cnt=127,user_timeout=auto", &["user_timeout=auto"]),
];

fn parses(text: &CStr) -> bool {
    let mut config = CONFIG_INIT;
    // SAFETY: a C string, and a config with its size.
    call(|ka| unsafe { (ka.ka_parse)(text.as_ptr(), &raw mut config) }).is_ok()
}

/// Returns the whole message.
fn explain(text: &CStr) -> String {
    let mut message = [0x55_u8; 4096];
    // SAFETY: a C string, and a buffer with its size.
    let length =
        call(|ka| unsafe { (ka.ka_explain)(text.as_ptr(), message.as_mut_ptr().cast(), message.len()) });
    let length = usize::try_from(length.unwrap()).unwrap();
    assert!(message[length] == 0 && message[length + 1..].iter().all(|byte| *byte == 0x55));
    String::from_utf8(message[..length].to_vec()).unwrap()
}

#[test]
fn messages_are_empty_exactly_for_texts_that_ka_parse_accepts() {
    for text in GOOD {
        let text = CString::new(*text).unwrap();
        assert!(parses(&text), "{text:?}");
        assert_eq!(explain(&text), "", "{text:?}");
    }
    for (text, _) in BAD {
        let text = CString::new(*text).unwrap();
        assert!(!parses(&text), "{text:?}");
        assert_ne!(explain(&text), "", "{text:?}");
    }
    // Tests each good text with each byte replaced, removed or repeated.
    let (mut good, mut bad) = (0, 0);
    for text in GOOD {
        for place in 0..text.len() {
            for byte in *b"019,:=-ms \t\x01\x7f\xff" {
                let bytes = text.as_bytes();
                for middle in [&[byte][..], &[], &[bytes[place], bytes[place], byte]] {
                    let changed = [&bytes[..place], middle, &bytes[place + 1..]].concat();
                    let changed = CString::new(changed).unwrap();
                    let (parses, message) = (parses(&changed), explain(&changed));
                    assert_eq!(parses, message.is_empty(), "{changed:?}: {message}");
                    *if parses { &mut good } else { &mut bad } += 1;
                }
            }
        }
    }
    assert!(good > 500 && bad > 5000, "{good} good texts, {bad} bad ones");
}

#[test]
fn messages_name_the_wrong_item_and_its_range() {
    for (text, parts) in BAD {
        let message = explain(&CString::new(*text).unwrap());
        for part in *parts {
            assert!(message.contains(part), "{text:?}: {message}");
        }
        // A message is an item of the text in quotes, then a description.
        let (item, description) = message.strip_prefix('"').unwrap().split_once("\": ").unwrap();
        assert!(text.contains(item) && description.len() > 10, "{text:?}: {message}");
        assert!(!description.contains('"'), "{text:?}: {message}");
    }
}

/// The message is for logs and terminals, so no text may end a line or move the cursor.
#[test]
fn messages_have_only_printable_ascii() {
    for byte in 1..=255_u8 {
        for text in [vec![byte], [b"idle=6", &[byte][..], b"0"].concat(), [b"60,10,", &[byte][..]].concat()] {
            let text = CString::new(text).unwrap();
            let message = explain(&text);
            assert!(message.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{text:?}: {message:?}");
        }
    }
    for (text, escaped) in [
        (c"idle=\x1b[2J", "\"idle=\\x1b[2J\": "),
        (c"x\ny", "\"x\\ny\": "),
        (c"\xff", "\"\\xff\": "),
        (c"a\"b", "\"a\\\"b\": "),
        (c"a\\b", "\"a\\\\b\": "),
    ] {
        assert!(explain(text).starts_with(escaped), "{}", explain(text));
    }
}

#[test]
fn messages_that_do_not_fit_are_truncated_as_by_snprintf() {
    for text in [c"60,10,5", c"cnt=0", c"idle=\x1b\x1b\x1b"] {
        let whole = explain(text);
        for size in 0..whole.len() + 8 {
            let mut message = [0x55_u8; 256];
            // SAFETY: the buffer has more than `size` bytes.
            let length =
                call(|ka| unsafe { (ka.ka_explain)(text.as_ptr(), message.as_mut_ptr().cast(), size) });
            assert_eq!(length, Ok(c_int::try_from(whole.len()).unwrap()), "size {size}");
            let kept = size.saturating_sub(1).min(whole.len());
            assert_eq!(&message[..kept], &whole.as_bytes()[..kept], "size {size}");
            assert!(size == 0 || message[kept] == 0, "size {size}: no NUL");
            let end = if size == 0 { 0 } else { kept + 1 };
            assert!(message[end..].iter().all(|byte| *byte == 0x55), "size {size}: written beyond");
        }
    }
    // SAFETY: nothing is written.
    let length = call(|ka| unsafe { (ka.ka_explain)(c"cnt=0".as_ptr(), ptr::null_mut(), 0) });
    assert_eq!(length, Ok(34), "{}", explain(c"cnt=0"));
    // If a text is long, the message contains all of it, and the result is the full length.
    let long = CString::new(vec![0x1b; 1 << 20]).unwrap();
    // SAFETY: nothing is written.
    let length = call(|ka| unsafe { (ka.ka_explain)(long.as_ptr(), ptr::null_mut(), 0) }).unwrap();
    assert!(length > 4 << 20, "{length}");
}

/// Two pages. The second one cannot be accessed.
struct GuardedPages(*mut u8);

const PAGE: usize = 4096;

impl GuardedPages {
    fn new() -> Self {
        // SAFETY: mmap(2) returns new memory, and the pages of mprotect(2) are in it.
        unsafe {
            let pages = libc::mmap(
                ptr::null_mut(),
                2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(pages, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(pages.byte_add(PAGE), PAGE, libc::PROT_NONE), 0);
            Self(pages.cast())
        }
    }

    /// Returns a pointer to the last `size` bytes before the edge.
    fn last(&self, size: usize) -> *mut c_char {
        // SAFETY: the last `size` bytes are in the first page.
        unsafe { self.0.add(PAGE - size).cast() }
    }
}

impl Drop for GuardedPages {
    fn drop(&mut self) {
        // SAFETY: `new` has mapped both pages, and nothing uses them any more.
        unsafe { libc::munmap(self.0.cast(), 2 * PAGE) };
    }
}

/// The text and the buffer end at the edge of a page. Access to one more byte would be a segmentation fault.
#[test]
fn bytes_beyond_the_text_and_the_buffer_are_not_accessed() {
    for text in GOOD.iter().copied().chain(BAD.iter().map(|(text, _)| *text)) {
        let text = CString::new(text).unwrap();
        let bytes = text.as_bytes_with_nul();
        let (from, to) = (GuardedPages::new(), GuardedPages::new());
        // SAFETY: the page has room for the text.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), from.last(bytes.len()).cast(), bytes.len()) };
        let whole = explain(&text);
        for size in 0..=whole.len() + 2 {
            // SAFETY: a C string, and `size` bytes before the edge.
            let length = call(|ka| unsafe { (ka.ka_explain)(from.last(bytes.len()), to.last(size), size) });
            assert_eq!(length, Ok(c_int::try_from(whole.len()).unwrap()), "{text:?}, size {size}");
        }
    }
}

#[test]
fn wrong_arguments_leave_the_message_unchanged() {
    let mut message = [0x55_u8; 16];
    // SAFETY: each pointer is NULL or valid.
    unsafe {
        assert_eq!(call(|ka| (ka.ka_explain)(ptr::null(), message.as_mut_ptr().cast(), 16)), Err(EINVAL));
        assert_eq!(call(|ka| (ka.ka_explain)(ptr::null(), ptr::null_mut(), 0)), Err(EINVAL));
        assert_eq!(call(|ka| (ka.ka_explain)(c"cnt=0".as_ptr(), ptr::null_mut(), 1)), Err(EINVAL));
        assert_eq!(call(|ka| (ka.ka_explain)(c"on".as_ptr(), ptr::null_mut(), 1)), Err(EINVAL));
    }
    assert_eq!(message, [0x55; 16]);
}
