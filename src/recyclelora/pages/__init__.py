"""Parts of self-contained HTML pages (the page, plots, pictures), and tables for the terminal."""
