"""What people look at: figures, and pages with pictures.

    results     a store's artifacts => `Results`, plain data; whatever no command has made is None
    summary     what the measured rows say: verdict, sentence, table
    figures     plain data => every figure, once: for the page, the notebooks and PNG files
    page        `Results` => one self-contained HTML page
    cards       why single weights have their methods, as text and for the page
    sections    what the sections of the page say
    graph_page  a graph => one self-contained interactive HTML page
    grids       pictures => one picture

Functions take plain data and return plain data; only `results.read` knows the store, only the
functions called ``write`` write.
"""
