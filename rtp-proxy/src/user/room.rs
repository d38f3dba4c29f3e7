//! Lists of what there is one of per leg: thousands in all, a few in each.

/// Appends. A full list makes room for a quarter more, not for as many again: one viewer of a stream costs one
/// entry, and a thousand viewers at most 250 that nobody uses.
pub(crate) fn append<T>(list: &mut Vec<T>, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / 4 + 1);
    }
    list.push(item);
}

#[cfg(test)]
mod tests {
    use super::append;

    #[test]
    fn list_has_room_for_a_quarter_more_at_most() {
        let mut list = Vec::new();
        for number in 0..1000 {
            append(&mut list, number);
            assert!(
                list.capacity() <= list.len() + list.len() / 4 + 1,
                "{} of {}",
                list.len(),
                list.capacity()
            );
        }
        assert_eq!(list.len(), 1000);
    }

    #[test]
    fn list_of_one_has_room_for_one() {
        let mut list = Vec::new();
        append(&mut list, 1);
        assert_eq!(list.capacity(), 1);
    }
}
