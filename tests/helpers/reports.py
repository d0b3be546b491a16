"""What a page says, for tests of what it shows."""

from html.parser import HTMLParser

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">"\'&amp; $x_{'


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.pieces = []
        self.feed(page)
        self.text = "".join(self.pieces)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.pieces.append(data)
