//! The header of Linux swap space, in a volume or in a file.
//!
//! ```text
//!   0     1024            1052        page-10            page                     (last_page+1)·page
//!   │ boot │ version, last │ id, label │ … │ "SWAPSPACE2" │ pages that mean nothing  │
//!   ├──────────────── kept ────────────────────────┤◄──────── left out ──────────►│
//! ```
//!
//! The signature ends the first page, whose size is that of the machine: 4 to 64 KiB. A sleeping system puts another one in
//! its place. Old swap space (`SWAP-SPACE`, a map of bad pages) is kept. Source: Linux `include/linux/swap.h`.

use block::ReadAt;
use guestfs::filesystem::VolumeRange;

/// Pages of all machines.
const PAGES: [usize; 5] = [4_096, 8_192, 16_384, 32_768, 65_536];
/// Kept from the beginning, whatever the page: it holds the largest.
pub(super) const HEADER_BYTES: u64 = 64 << 10;

/// Swap space in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SwapSpace {
    /// What may be left out.
    pub contents: VolumeRange,
}

/// What the head of swap space says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SwapHead {
    /// Swap space, so many bytes long.
    Used(u64),
    /// A system sleeps in it.
    Asleep,
    /// Something else.
    Other,
}

/// Reads the head of a volume or file.
pub(super) fn head(source: &(impl ReadAt + ?Sized)) -> block::Result<SwapHead> {
    let mut bytes = vec![0; PAGES[PAGES.len() - 1]];
    block::read_padded(source, 0, &mut bytes)?;
    for page in PAGES {
        let mark = page.checked_sub(10).and_then(|at| bytes.get(at..page));
        match mark {
            Some(b"SWAPSPACE2") => return Ok(used(&bytes, page, source.size_bytes())),
            Some(mark)
                if [&b"S1SUSPEND"[..], b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"]
                    .iter()
                    .any(|asleep| mark.starts_with(asleep)) =>
            {
                return Ok(SwapHead::Asleep);
            }
            _ => {}
        }
    }
    Ok(SwapHead::Other)
}

fn used(bytes: &[u8], page: usize, size_bytes: u64) -> SwapHead {
    // TuxOnIce writes over the beginning and leaves the signature where it is.
    if bytes
        .get(..1024)
        .is_none_or(|boot| boot.iter().any(|byte| *byte != 0))
    {
        return SwapHead::Other;
    }
    let number = |at: usize| {
        let four = bytes.get(at..at.saturating_add(4))?;
        four.try_into().ok().map(u32::from_le_bytes)
    };
    let (Some(1), Some(last)) = (number(1024), number(1028)) else {
        return SwapHead::Other;
    };
    let page = u64::try_from(page).unwrap_or(u64::MAX);
    let end = u64::from(last).saturating_add(1).saturating_mul(page);
    if last == 0 || end > size_bytes {
        return SwapHead::Other;
    }
    SwapHead::Used(end)
}

/// What may be left out of a volume of swap space.
pub(super) fn read(volume: &(impl ReadAt + ?Sized)) -> block::Result<Option<SwapSpace>> {
    Ok(match head(volume)? {
        SwapHead::Used(end) => Some(SwapSpace {
            contents: VolumeRange {
                offset: HEADER_BYTES,
                length_bytes: end.saturating_sub(HEADER_BYTES),
            },
        }),
        SwapHead::Asleep | SwapHead::Other => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(Vec<u8>);

    impl ReadAt for Bytes {
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            buffer.copy_from_slice(&self.0[from..from + buffer.len()]);
            Ok(())
        }
    }

    fn made(page: usize, last: u32, mark: &[u8]) -> Bytes {
        let mut bytes = vec![0; 1 << 20];
        bytes[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
        bytes[1028..1032].copy_from_slice(&last.to_le_bytes());
        bytes[page - 10..page - 10 + mark.len()].copy_from_slice(mark);
        Bytes(bytes)
    }

    #[test]
    fn only_a_sound_header_of_swap_space_in_use_is_believed() {
        let of = |bytes: &Bytes| head(bytes).ok();
        assert_eq!(
            of(&made(4096, 255, b"SWAPSPACE2")),
            Some(SwapHead::Used(1 << 20))
        );
        assert_eq!(
            of(&made(65_536, 7, b"SWAPSPACE2")),
            Some(SwapHead::Used(1 << 19))
        );
        for (last, mark) in [
            (256, &b"SWAPSPACE2"[..]),
            (0, b"SWAPSPACE2"),
            (255, b"SWAP-SPACE"),
            (255, b"SWAPSPACE3"),
        ] {
            assert_eq!(of(&made(4096, last, mark)), Some(SwapHead::Other), "{last}");
        }
        for mark in [&b"S1SUSPEND"[..], b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"] {
            assert_eq!(of(&made(4096, 255, mark)), Some(SwapHead::Asleep));
        }
        let mut tux = made(4096, 255, b"SWAPSPACE2");
        tux.0[..2].copy_from_slice(&[0xED, 0xC3]);
        assert_eq!(of(&tux), Some(SwapHead::Other));
        assert_eq!(of(&Bytes(vec![0; 512])), Some(SwapHead::Other));
    }
}
