//! Names that others chose, on a terminal and in JSON: they give the terminal no orders, do not break a table, and come
//! out of a parser of JSON as they are.

#![no_main]
#![allow(dead_code, reason = "the command uses the rest")]

use ka_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;
use table::{Cell, Column, Output, Paint};

#[path = "../../crates/ka-cli/src/sys.rs"]
mod sys;
#[path = "../../crates/ka-cli/src/table.rs"]
mod table;
#[path = "../../crates/ka-cli/src/text.rs"]
mod text;

/// What moves the cursor, rings, colours, or turns the direction: Unicode's Cc, Zl, Zp and Bidi_Control.
fn is_order(letter: char) -> bool {
    matches!(u32::from(letter), 0..=0x1f | 0x7f..=0x9f | 0x061c | 0x200e | 0x200f | 0x2028..=0x202e | 0x2066..=0x2069)
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let (width, colour) = (usize::from(input.byte()), input.byte() % 2 == 0);
    let names: Vec<&[u8]> = std::iter::from_fn(|| (!input.is_empty()).then(|| input.text(64))).collect();
    for name in &names {
        check(name);
    }
    check_table(&names, Output { width: (width > 0).then_some(width), colour });
});

fn check(name: &[u8]) {
    let (lossless, visible) = (text::lossless(name), text::visible(name));
    assert!(!visible.contains(is_order), "{visible:?}");
    assert_eq!(text::visible(visible.as_bytes()), visible);
    match std::str::from_utf8(name) {
        Ok(name) => assert_eq!((&*lossless, *visible == *name), (name, !name.contains(is_order))),
        Err(_) => assert!(lossless.contains("\\x") && visible.contains("\\x")),
    }
    // As `ka --json` writes it: a line, and what is read is what was there.
    let json = serde_json::to_string(&lossless).unwrap();
    assert!(!json.contains('\n') && json.is_char_boundary(json.len()));
    assert_eq!(serde_json::from_str::<String>(&json).unwrap(), *lossless);
}

/// A table has a line for each row, and none wider than it may be, unless no column can give way any more.
fn check_table(names: &[&[u8]], output: Output) {
    const LEAST: usize = 3;
    let columns = [Column::left("N"), Column::elastic("NAME", LEAST), Column::right("STATE")];
    let row = |(n, name): (usize, &&[u8])| {
        let name = text::visible(name).into_owned();
        vec![Cell::from(n.to_string()), name.into(), Cell::painted("off", Paint::Bad)]
    };
    let rows: Vec<_> = names.iter().enumerate().map(row).collect();
    let mut out = Vec::new();
    table::write(&mut out, output, &columns, &rows).unwrap();
    let text = String::from_utf8(out).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), rows.len() + 1);
    let widest = names.len().saturating_sub(1).to_string().len();
    let least = widest.max(1) + 1 + LEAST + 1 + "STATE".len();
    for line in lines {
        let plain = line.replace("\x1b[31m", "").replace("\x1b[0m", "").replace("\x1b[1m", "");
        assert!(!plain.contains(is_order), "{plain:?}");
        if let Some(width) = output.width {
            assert!(plain.chars().count() <= width.max(least), "{plain:?} in {width}");
        }
    }
}
