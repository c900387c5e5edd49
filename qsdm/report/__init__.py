"""What people look at: a page with pictures and plots, and the figures of the notebooks.

    results     a store's artifacts => `Results`, plain data; whatever no command has made yet is None
    charts      plain data => plotly figures as dicts, for the page and for W&B
    figures     plain data => matplotlib figures, for notebooks and PNG files
    page        `Results` => one self-contained HTML page
    graph_page  a graph => one self-contained interactive HTML page

Functions take plain data and return plain data; only `results.read` knows the store, only the functions called
``write`` write.
"""
