//! POSIX access control lists as text, as archives hold them (`SCHILY.acl.access`).
//!
//! ```text
//!   version 2 (u32) │ [kind u16, rights u16, id u32]…   ─►   user::rwx,user:1000:r-x,group::r-x,mask::r-x,other::r--
//! ```

const VERSION: u32 = 2;
const ENTRIES_MAX: usize = 8192;

/// The text; `None` when the value is no list of this version.
pub(super) fn text(value: &[u8]) -> Option<String> {
    let (head, rest) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*head) != VERSION || rest.is_empty() {
        return None;
    }
    let mut texts = Vec::new();
    let (entries, left) = rest.as_chunks::<8>();
    if !left.is_empty() || entries.len() > ENTRIES_MAX {
        return None;
    }
    for [kind_low, kind_high, low, high, id @ ..] in entries {
        let kind = u16::from_le_bytes([*kind_low, *kind_high]);
        let rights = u16::from_le_bytes([*low, *high]);
        let id = u32::from_le_bytes(*id);
        let who = match kind {
            0x01 => "user:".to_owned(),
            0x02 => format!("user:{id}"),
            0x04 => "group:".to_owned(),
            0x08 => format!("group:{id}"),
            0x10 => "mask:".to_owned(),
            0x20 => "other:".to_owned(),
            _ => return None,
        };
        let letter = |bit: u16, letter: char| if rights & bit != 0 { letter } else { '-' };
        texts.push(format!(
            "{who}:{}{}{}",
            letter(4, 'r'),
            letter(2, 'w'),
            letter(1, 'x')
        ));
    }
    Some(texts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_told_as_setfacl_writes_it() {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (kind, rights, id) in [
            (1_u16, 7_u16, u32::MAX),
            (2, 5, 1000),
            (4, 5, u32::MAX),
            (0x10, 5, u32::MAX),
            (0x20, 0, u32::MAX),
        ] {
            value.extend(kind.to_le_bytes());
            value.extend(rights.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        let wanted = "user::rwx,user:1000:r-x,group::r-x,mask::r-x,other::---";
        assert_eq!(text(&value).as_deref(), Some(wanted));
        assert_eq!(text(&value[..value.len() - 1]), None);
        assert_eq!(text(b""), None);
        assert_eq!(text(&3_u32.to_le_bytes()), None);
    }
}
