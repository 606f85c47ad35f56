-- Pages link to each other as .md, and as .html in what is built.
function Link(link)
  link.target = link.target:gsub("^([%w_]+)%.md", "%1.html")
  return link
end
