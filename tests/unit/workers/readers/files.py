"""Files as programs write them, made by hand: PDF and Word."""

import io
import zipfile
import zlib
from collections.abc import Sequence

#: A font whose table says that its letters mean nothing: characters of the private use area.
MEANINGLESS = b"""/CIDInit /ProcSet findresource begin 12 dict begin begincmap
/CMapName /X def /CMapType 2 def
1 begincodespacerange <00> <FF> endcodespacerange
1 beginbfrange <20> <7E> <E020> endbfrange
endcmap CMapName currentdict /CMap defineresource pop end end"""

#: RC4 with a password that nobody has.
ENCRYPTED = b"<< /Filter /Standard /V 1 /R 2 /P -4 /O (%s) /U (%s) >>" % (b"a" * 32, b"b" * 32)


def pdf(pages: Sequence[str], *, meaning: bytes = b"", encrypt: bytes = b"") -> bytes:
    """Lines of text in Helvetica, a text a page."""
    return pdf_of([_page(text) for text in pages], meaning=meaning, encrypt=encrypt)


def pdf_of(contents: Sequence[bytes], *, meaning: bytes = b"", encrypt: bytes = b"") -> bytes:
    """Pages with these contents: https://opensource.adobe.com/dc-acrobat-sdk-docs/pdfstandards/."""
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"",
        font + (b" /ToUnicode 4 0 R >>" if meaning else b" >>"),
        _stream(meaning),
    ]
    kids = []
    for content in contents:
        objects.append(_stream(content))
        body = b"/Resources << /Font << /F 3 0 R >> >> /MediaBox [0 0 595 842]"
        objects.append(
            b"<< /Type /Page /Parent 2 0 R %s /Contents %d 0 R >>" % (body, len(objects))
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    out, places = io.BytesIO(b"%PDF-1.7\n"), []
    out.seek(0, io.SEEK_END)
    for number, each in enumerate(objects, start=1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, each))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % place for place in places)
    more = b" /Encrypt %s /ID [(a) (a)]" % encrypt if encrypt else b""
    out.write(b"trailer << /Size %d /Root 1 0 R%s >>\n" % (len(objects) + 1, more))
    out.write(b"startxref\n%d\n%%%%EOF" % start)
    return out.getvalue()


def word(body: str, **parts: bytes) -> bytes:
    """A Word document with this body, and parts of these names."""
    w = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "[Content_Types].xml",
            '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>',
        )
        document = f'<w:document xmlns:w="{w}"><w:body>{body}</w:body></w:document>'
        archive.writestr("word/document.xml", document)
        for name, content in parts.items():
            archive.writestr(f"word/{name}.xml", content)
    return out.getvalue()


def paragraph(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def _page(text: str) -> bytes:
    lines = text.replace("(", r"\(").replace(")", r"\)").splitlines()
    shown = " T* ".join(f"({line}) Tj" for line in lines)
    return f"BT /F 12 Tf 14 TL 50 800 Td {shown} ET".encode("latin-1")


def _stream(content: bytes) -> bytes:
    packed = zlib.compress(content)
    head = b"<< /Filter /FlateDecode /Length %d >>" % len(packed)
    return head + b"\nstream\n" + packed + b"\nendstream"
