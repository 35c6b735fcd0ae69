//! Who the other side is, and sealing what goes between.
