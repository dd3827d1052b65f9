"""How is it shown? Figures, and pages of them."""
