//! A security descriptor of Windows as text, as `Set-Acl` and `icacls` understand it (MS-DTYP 2.4.6 and 2.5.1).
//!
//! ```text
//!   O:S-1-5-32-544 G:… D:PAI(A;OICI;0x1f01ff;;;S-1-5-18)… S:…      written without the spaces
//! ```
//!
//! Accounts are numbers and rights are hexadecimal digits, so that nothing depends on names. Entries whose kind has no
//! letters here make the whole text absent: the bytes of the descriptor stand beside it and lose nothing.

const OWNER_ABSENT: u32 = 0;
const DACL_PRESENT: u16 = 0x0004;
const SACL_PRESENT: u16 = 0x0010;
const ENTRIES_MAX: u16 = 2000;

fn bytes_at(bytes: &[u8], offset: usize, length: usize) -> Option<&[u8]> {
    bytes.get(offset..offset.checked_add(length)?)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let array: [u8; 2] = bytes_at(bytes, offset, 2)?.try_into().ok()?;
    Some(u16::from_le_bytes(array))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let array: [u8; 4] = bytes_at(bytes, offset, 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(array))
}

fn offset_at(bytes: &[u8], offset: usize) -> Option<Option<usize>> {
    Some(match u32_at(bytes, offset)? {
        OWNER_ABSENT => None,
        place => Some(usize::try_from(place).ok()?),
    })
}

/// The text; `None` when the descriptor is damaged or holds what has no text here.
pub(super) fn text(descriptor: &[u8]) -> Option<String> {
    let control = u16_at(descriptor, 2)?;
    let mut text = String::new();
    for (letter, field) in [('O', 4), ('G', 8)] {
        if let Some(place) = offset_at(descriptor, field)? {
            text.push_str(&format!("{letter}:{}", sid(descriptor, place)?));
        }
    }
    let lists = [
        // Letter, its place, present, protected, must be inherited, was inherited.
        ('D', 16, DACL_PRESENT, 0x1000, 0x0100, 0x0400),
        ('S', 12, SACL_PRESENT, 0x2000, 0x0200, 0x0800),
    ];
    for (letter, field, present, protected, required, inherited) in lists {
        if control & present == 0 {
            continue;
        }
        text.push_str(&format!("{letter}:"));
        for (bit, flag) in [(protected, "P"), (required, "AR"), (inherited, "AI")] {
            if control & bit != 0 {
                text.push_str(flag);
            }
        }
        match offset_at(descriptor, field)? {
            None => text.push_str("NO_ACCESS_CONTROL"),
            Some(place) => text.push_str(&entries(descriptor, place)?),
        }
    }
    Some(text)
}

fn sid(bytes: &[u8], at: usize) -> Option<String> {
    let head = bytes_at(bytes, at, 8)?;
    let (revision, count) = (*head.first()?, *head.get(1)?);
    if revision != 1 || count > 15 {
        return None;
    }
    let mut wide = [0; 8];
    wide.get_mut(2..)?.copy_from_slice(head.get(2..8)?);
    let authority = u64::from_be_bytes(wide);
    let mut text = if authority < 1 << 32 {
        format!("S-1-{authority}")
    } else {
        format!("S-1-0x{authority:012x}")
    };
    for index in 0..usize::from(count) {
        let place = at.checked_add(8)?.checked_add(index.checked_mul(4)?)?;
        text.push_str(&format!("-{}", u32_at(bytes, place)?));
    }
    Some(text)
}

fn entries(bytes: &[u8], at: usize) -> Option<String> {
    let count = u16_at(bytes, at.checked_add(4)?)?;
    if count > ENTRIES_MAX {
        return None;
    }
    let mut text = String::new();
    let mut place = at.checked_add(8)?;
    for _ in 0..count {
        let length = usize::from(u16_at(bytes, place.checked_add(2)?)?);
        text.push_str(&entry(bytes_at(bytes, place, length)?)?);
        place = place.checked_add(length.max(4))?;
    }
    Some(text)
}

fn entry(entry: &[u8]) -> Option<String> {
    let (kind, flags) = (*entry.first()?, *entry.get(1)?);
    let kind = match kind {
        0 => "A",
        1 => "D",
        2 => "AU",
        3 => "AL",
        0x11 => "ML",
        // With objects, conditions or claims: those have texts of their own.
        _ => return None,
    };
    let mut letters = String::new();
    for (bit, letter) in [
        (0x01, "OI"),
        (0x02, "CI"),
        (0x04, "NP"),
        (0x08, "IO"),
        (0x10, "ID"),
        (0x40, "SA"),
        (0x80, "FA"),
    ] {
        if flags & bit != 0 {
            letters.push_str(letter);
        }
    }
    let rights = u32_at(entry, 4)?;
    Some(format!(
        "({kind};{letters};{rights:#x};;;{})",
        sid(entry, 8)?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(rest: &[u32]) -> Vec<u8> {
        let count = u8::try_from(rest.len()).expect("few");
        let mut bytes = vec![1, count, 0, 0, 0, 0, 0, 5];
        bytes.extend(rest.iter().flat_map(|number| number.to_le_bytes()));
        bytes
    }

    fn descriptor() -> Vec<u8> {
        let (owner, system) = (account(&[32, 544]), account(&[18]));
        let mut entry = vec![0, 0x13, 20, 0];
        entry.extend(0x001f_01ff_u32.to_le_bytes());
        entry.extend(&system);
        let mut list = vec![2, 0];
        list.extend(u16::try_from(8 + entry.len()).expect("short").to_le_bytes());
        list.extend([1, 0, 0, 0]);
        list.extend(&entry);
        let mut bytes = vec![1, 0, 0x04, 0x94];
        for place in [20_u32, 36, 0, 48] {
            bytes.extend(place.to_le_bytes());
        }
        bytes.extend(owner);
        bytes.extend(system);
        bytes.extend(list);
        bytes
    }

    #[test]
    fn a_descriptor_is_told_as_windows_writes_it() {
        let told = text(&descriptor());
        let wanted = "O:S-1-5-32-544G:S-1-5-18D:PAI(A;OICIID;0x1f01ff;;;S-1-5-18)";
        assert_eq!(told.as_deref(), Some(wanted));
    }

    #[test]
    fn a_damaged_descriptor_has_no_text_and_nothing_breaks() {
        let whole = descriptor();
        for length in 0..whole.len() {
            assert_eq!(text(&whole[..length]), None, "{length} bytes");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] = 0xFF;
            // Another text or none; no panic.
            let told = text(&bytes);
            assert!(told.is_none_or(|told| !told.is_empty()));
        }
    }
}
