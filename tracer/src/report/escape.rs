//! Hostile text, made safe to show.
//!
//! Process names, paths and symbols are chosen by whoever made the target. What a terminal would obey, what would make
//! a line look like another one and what XML forbids is shown as an escape; everything else stays as it is.

use std::borrow::Cow;

/// `text` with every character that is not plainly visible written as an escape such as `\n` or `\u{1b}`.
///
/// The result is one line, obeys no terminal, reads in the order it is stored in, and has only characters that XML 1.0
/// allows (production 2, `Char`), but for `<` and its like: see [`xml`].
pub fn visible(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) || !text.chars().any(hidden) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            _ if hidden(character) => safe.extend(character.escape_unicode()),
            _ => safe.push(character),
        }
    }
    Cow::Owned(safe)
}

/// Whether a character does something else than to show itself.
fn hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' // text direction
            | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}' | '\u{feff}' // no width
            | '\u{2028}' | '\u{2029}' // line and paragraph separators
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}' // annotations, tags and variation selectors
            | '\u{fdd0}'..='\u{fdef}') // noncharacters, with the next line
        || u32::from(character) & 0xfffe == 0xfffe
}

/// `text` cut to at most `most` characters: the middle goes, as both ends of a C++ name say something.
pub fn shorten(text: Cow<'_, str>, most: usize) -> Cow<'_, str> {
    if text.len() <= most || text.chars().count() <= most {
        return text;
    }
    let tail = most / 3;
    let head = most.saturating_sub(tail + 1);
    let start_of = |index: usize| text.char_indices().nth(index).map_or(text.len(), |(start, _)| start);
    let end = &text[start_of(text.chars().count() - tail)..];
    Cow::Owned(format!("{}…{end}", &text[..start_of(head)]))
}

/// `text` as the content of an XML element. For text that went through [`visible`].
pub(super) fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_becomes_visible() {
        for (hostile, safe) in [
            ("a\nb\r\tc", r"a\nb\r\tc"),
            ("\u{1b}[31mred\u{9b}0m\u{7}", r"\u{1b}[31mred\u{9b}0m\u{7}"),
            ("nul\0del\u{7f}nel\u{85}", r"nul\u{0}del\u{7f}nel\u{85}"),
            ("\u{202e}gpj.exe\u{2066}x\u{2069}\u{200f}", r"\u{202e}gpj.exe\u{2066}x\u{2069}\u{200f}"),
            ("a\u{2028}b\u{200b}c\u{feff}", r"a\u{2028}b\u{200b}c\u{feff}"),
            ("\u{fffe}\u{ffff}\u{10ffff}\u{fdd0}\u{e0041}", r"\u{fffe}\u{ffff}\u{10ffff}\u{fdd0}\u{e0041}"),
        ] {
            assert_eq!(visible(hostile), safe);
        }
    }

    #[test]
    fn harmless_text_stays_as_it_is() {
        for text in ["", "operator new[](unsigned long)", "größe<Ünïcödé>", "名前::空間", "a\\nb", "\u{fffd}", "😀"]
        {
            assert!(matches!(visible(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn no_character_is_left_that_xml_forbids_or_that_controls() {
        for character in '\0'..=char::MAX {
            for left in visible(character.encode_utf8(&mut [0; 4])).chars() {
                let allowed = matches!(left, ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
                assert!(allowed && !left.is_control(), "{character:?} gives {left:?}");
            }
        }
    }

    #[test]
    fn long_text_loses_its_middle() {
        let check = |text: &str, most, short: &str| assert_eq!(shorten(Cow::Borrowed(text), most), short);
        check("0123456789", 10, "0123456789");
        check("0123456789a", 10, "012345…89a");
        check("äöüäöüäöüä", 10, "äöüäöüäöüä");
        check("äöüäöüäöüäö", 10, "äöüäöü…üäö");
        check("abc", 1, "…");
    }

    #[test]
    fn markup_is_escaped() {
        assert_eq!(xml("<a href='x'>&\"</a>"), "&lt;a href='x'&gt;&amp;\"&lt;/a&gt;");
    }
}
