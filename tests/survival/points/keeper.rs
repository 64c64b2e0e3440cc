//! Deaths of the keeper.
