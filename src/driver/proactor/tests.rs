//! What only a backend by completion can get wrong.
